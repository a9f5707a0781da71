"""The one error for a user's mistake: the command line prints it in a line, without a traceback."""


class TigerError(ValueError):
    """Bad input. The message says the fact, the place and the remedy."""

"""The one error for a user's mistake: the command line prints it in a line, without a traceback."""

import math

# How many offenders a message names.
NAMED = 3


class TigerError(ValueError):
    """Bad input. The message says the fact, the place and the remedy."""


def check_number(name, value, *, positive=False):
    """Refuse a setting that is no finite number from 0 up, or with ``positive`` none above 0.

    Raises:
        TigerError: with the setting and what it may be.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (positive and value == 0):
        raise TigerError(f"{name} has to be a {'positive number' if positive else 'number from 0 up'}, not {value!r}")


def named(values):
    """The first few of ``values``, for a message."""
    values = list(values)
    shown = ", ".join(map(str, values[:NAMED]))
    return shown + (", ..." if len(values) > NAMED else "")

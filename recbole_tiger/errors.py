"""The error for a user's mistake, which the command line prints in one line, without a traceback."""

import math

# Number of offending values that a message names.
MAX_NAMED = 3


class TigerError(ValueError):
    """Bad input. The message gives the fact, the place and the remedy."""


def check_number(name, value, *, positive=False):
    """Check that a setting is a finite number of at least 0, or above 0 with ``positive``.

    Raises:
        TigerError: names the setting and its valid values.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (positive and value == 0):
        raise TigerError(f"{name} has to be a {'positive number' if positive else 'number from 0 up'}, not {value!r}")


def named(values):
    """The first few of ``values``, for a message."""
    values = list(values)
    shown = ", ".join(map(str, values[:MAX_NAMED]))
    return shown + (", ..." if len(values) > MAX_NAMED else "")

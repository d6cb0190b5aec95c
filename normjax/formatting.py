"""Format numbers and intervals as text."""

import math
from collections.abc import Sequence

import numpy as np

ABSENT = "–"


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with at most `digits` significant digits, without trailing zeros.

    Thousands are grouped; all digits before the decimal point are kept. Scientific notation is used
    below 0.00001 and from 1e15.

    Examples:
      >>> from normjax.formatting import number
      >>> [number(value) for value in (0.5, 0.00110, 12.345, 12345.6, 4.77e-5, 4.7e-6)]
      ['0.5', '0.0011', '12.3', '12,346', '0.0000477', '4.7e-06']

    Args:
      value: the number; None and NaN are written as a dash.
      digits: significant digits, at least 1.
    """
    if value is None or math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    if not -5 <= int(exponent) < 15:
        return f"{_without_zeros(mantissa)}e{exponent}"
    return _without_zeros(f"{value:,.{max(digits - 1 - int(exponent), 0)}f}")


def fixed(value: float | None, places: int = 2) -> str:
    """Format a number with a given number of decimal places, to compare the rows of a column.

    Examples:
      >>> from normjax.formatting import fixed
      >>> [fixed(value) for value in (0.5, -0.001, 1234.567, float("inf"), None)]
      ['0.50', '0.00', '1,234.57', '∞', '–']
    """
    is_finite = value is not None and math.isfinite(value)
    return f"{value:z,.{places}f}" if is_finite else number(value)


def percent(value: float | None, digits: int = 3) -> str:
    """Format a fraction as a percentage, like `number`.

    Examples:
      >>> from normjax.formatting import percent
      >>> [percent(value) for value in (0.1234, 0.07, 1e-7)]
      ['12.3%', '7%', '0.00001%']
    """
    return ABSENT if value is None or math.isnan(value) else f"{number(100 * value, digits)}%"


def interval(bounds: Sequence[float] | None, digits: int = 3) -> str:
    """Format an interval as `low to high`."""
    if bounds is None or any(map(math.isnan, bounds)):
        return ABSENT
    low, high = bounds
    return f"{number(low, digits)} to {number(high, digits)}"


def plain(value: object) -> str:
    """Return the `repr` of a value, with NumPy's numbers as Python writes them.

    Examples:
      >>> import numpy as np
      >>> from normjax.formatting import plain
      >>> plain((np.float32(0.5), "2"))
      "(0.5, '2')"
    """
    with np.printoptions(legacy="1.21"):
        return repr(value)


def _without_zeros(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text

"""Format numbers and intervals as text."""

import math
from collections.abc import Sequence

ABSENT = "–"


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with a given number of significant digits.

    Thousands are grouped. Numbers that would need more than six places use scientific notation:
    `0.0011`, `12.3`, `10,000`, `4.77e-05`.

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
    magnitude = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if not -5 <= magnitude < 15:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - magnitude, 0)}f}"


def fixed(value: float | None, places: int = 2) -> str:
    """Format a number with a given number of decimal places, as for R² and tau."""
    return ABSENT if value is None or math.isnan(value) else f"{value:,.{places}f}"


def percent(value: float | None, digits: int = 3) -> str:
    """Format a fraction as a percentage: `0.1234` is `12.3%`."""
    return ABSENT if value is None or math.isnan(value) else f"{number(100 * value, digits)}%"


def interval(bounds: Sequence[float] | None, digits: int = 3) -> str:
    """Format an interval as `low to high`."""
    if bounds is None or any(map(math.isnan, bounds)):
        return ABSENT
    low, high = bounds
    return f"{number(low, digits)} to {number(high, digits)}"

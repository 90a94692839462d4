"""Means per minute, and the slope of values over minutes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..arrays import Values


class MinuteMeans:
    """Average measures over each minute; stores only sums, so that its size does not depend on the input.

    Args:
        minutes: length of the stream; values of later minutes are ignored.
    """

    def __init__(self, minutes: int) -> None:
        self._minutes = minutes
        self._sums: dict[str, Values] = {}

    def add(self, name: str, times: npt.ArrayLike, values: npt.ArrayLike) -> None:
        """Add values of a measure.

        Args:
            name: name of the measure.
            times: times of the values in minutes, [values], at least 0.
            values: [values].
        """
        minutes, values = np.asarray(times).astype(int), np.asarray(values, np.float64)
        known = minutes < self._minutes
        sums = self._sums.setdefault(name, np.zeros((2, self._minutes)))
        for row, weights in enumerate((values[known], None)):
            sums[row] += np.bincount(minutes[known], weights, self._minutes)

    def means(self, name: str) -> Values:
        """Return the mean of each minute, [minutes]; NaN for minutes without values."""
        total, count = self._sums.get(name, np.zeros((2, self._minutes)))
        means: Values = total / np.where(count > 0, count, np.nan)
        return means


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fit a line through points by least squares.

    Args:
        points: pairs (x, y) with at least two different x.

    Returns:
        The slope and its standard error. With two points the error is unknown and given as 0.
    """
    x, y = np.asarray(points, np.float64).T
    found, intercept = np.polyfit(x, y, 1)
    residuals, freedom = y - found * x - intercept, len(x) - 2
    variance = np.square(residuals).sum() / freedom if freedom > 0 else 0.0
    return float(found), float(np.sqrt(variance / np.square(x - x.mean()).sum()))

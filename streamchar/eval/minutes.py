"""Means of each minute of a stream, of which sums alone are kept."""

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


class MinuteMeans:
    """Gather measures value by value; what is held does not depend on how many there are.

    Args:
        minutes: of the stream; values of later ones are left out.
    """

    def __init__(self, minutes: int) -> None:
        self._minutes = minutes
        self._sums: dict[str, Values] = {}

    def add(self, name: str, times: npt.ArrayLike, values: npt.ArrayLike) -> None:
        """Take in values of a measure.

        Args:
            name: of the measure.
            times: of the values, [values], in minutes, not negative.
            values: [values].
        """
        minutes, values = np.asarray(times).astype(int), np.asarray(values, np.float64)
        known = minutes < self._minutes
        sums = self._sums.setdefault(name, np.zeros((2, self._minutes)))
        for row, weights in enumerate((values[known], None)):
            sums[row] += np.bincount(minutes[known], weights, self._minutes)

    def means(self, name: str) -> Values:
        """Return the mean of each minute, [minutes]; NaN where there were no values."""
        total, count = self._sums.get(name, np.zeros((2, self._minutes)))
        means: Values = total / np.where(count > 0, count, np.nan)
        return means

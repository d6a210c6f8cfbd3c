"""The legal layouts as points of the unit cube, which is how a sampler sees them."""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np

from moeplan.estimator.table import Table
from moeplan.search.layouts import DEGREES


class LayoutTree:
    """The legal layouts as a tree of degrees: each level lists the values that are legal after the levels above.

    ====  ====  =======================  With ``tp`` drawn as 0.7 the second half of the rows is left (tp=2), and ``pp``
    tp    pp    u                        is decoded among 1 and 4 only.
    ====  ====  =======================
    1     1     tp 0.00-0.49, pp 0-0.33
    1     2     tp 0.00-0.49, pp 0.33-0.66
    1     4     tp 0.00-0.49, pp 0.67-1
    2     1     tp 0.50-1.00, pp 0-0.49
    2     4     tp 0.50-1.00, pp 0.50-1
    ====  ====  =======================
    """

    def __init__(self, layouts: Table) -> None:
        self.values = np.stack([layouts[name].astype(np.int64) for name in DEGREES], axis=1)
        self._doublings = np.log2(self.values)
        self.names = [name for position, name in enumerate(DEGREES) if len(np.unique(self.values[:, position])) > 1]

    def decode(self, point: Mapping[str, float]) -> int:
        """The layout that a point of the unit cube means."""
        low, high = 0, len(self.values)
        for position, name in enumerate(DEGREES):
            if name not in self.names:
                continue
            options, starts = np.unique(self.values[low:high, position], return_index=True)
            pick = min(int(point[name] * len(options)), len(options) - 1)
            stop = starts[pick + 1] if pick + 1 < len(options) else high - low
            low, high = low + int(starts[pick]), low + int(stop)
        return low

    def encode(self, layout: int) -> dict[str, float]:
        """The middle of the cell that decodes to a layout."""
        point = {}
        low, high = 0, len(self.values)
        for position, name in enumerate(DEGREES):
            if name not in self.names:
                continue
            options, starts = np.unique(self.values[low:high, position], return_index=True)
            pick = int(np.searchsorted(options, self.values[layout, position]))
            point[name] = (pick + 0.5) / len(options)
            stop = starts[pick + 1] if pick + 1 < len(options) else high - low
            low, high = low + int(starts[pick]), low + int(stop)
        return point

    def nearest_other(self, layout: int, known: Container[int]) -> int:
        """The layout outside ``known`` whose degrees are the fewest doublings away (``layout`` itself if all are)."""
        steps = np.abs(self._doublings - self._doublings[layout]).sum(axis=1)
        for candidate in np.argsort(steps, kind="stable"):
            if int(candidate) not in known:
                return int(candidate)
        return layout

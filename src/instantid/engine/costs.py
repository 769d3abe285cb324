"""Measured seconds of a unit of work by kind, area and rows, and what follows for batching."""

import bisect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from instantid.engine.task import Group

WORTHWHILE = 0.75
"""Rows join a batch only if the joint unit costs at most this share of two separate ones: two equal requests are then
answered sooner on average than one after the other."""


@dataclass
class CostTable:
    """Costs in seconds: for each kind and area, (rows, seconds of a unit) with rising rows.

    A kind that was never measured costs 0; one that was measured at one number of rows is never batched.
    """

    measured: Mapping[tuple[str, int], tuple[tuple[int, float], ...]]
    _limits: dict[tuple[str, int], int] = field(default_factory=dict, compare=False, repr=False)
    _known: dict[tuple[str, int, int], float] = field(default_factory=dict, compare=False, repr=False)

    def seconds(self, kind: str, group: Group, rows: int) -> float:
        """Seconds of one unit: measured, interpolated between rows, or scaled by area from the nearest area."""
        key = kind, group.area, rows
        if key not in self._known:
            self._known[key] = self._estimate(*key)
        return self._known[key]

    def max_rows(self, kind: str, group: Group) -> int:
        """The largest batch to form: the largest that was measured, and smaller than any that `limit` was told."""
        key = kind, group.area
        if key not in self._limits:
            self._limits[key] = self._nearest(*key)[1][-1][0]
        return self._limits[key]

    def limit(self, kind: str, group: Group, rows: int) -> None:
        """Never form a batch of this kind and area with so many rows again: the device could not hold it."""
        self._limits[kind, group.area] = min(rows - 1, self.max_rows(kind, group))

    def joining_pays(self, kind: str, group: Group, rows: int, more: int) -> bool:
        """Whether `more` rows in the same unit are clearly cheaper than in a unit of their own."""
        if rows + more > self.max_rows(kind, group):
            return False
        apart = self.seconds(kind, group, rows) + self.seconds(kind, group, more)
        return self.seconds(kind, group, rows + more) <= WORTHWHILE * apart

    def _estimate(self, kind: str, area: int, rows: int) -> float:
        nearest, points = self._nearest(kind, area)
        if len(points) == 1:
            return area / nearest * points[0][1] * rows / points[0][0]
        i = min(max(bisect.bisect_left(points, (rows, 0.0)), 1), len(points) - 1)
        (rows0, cost0), (rows1, cost1) = points[i - 1], points[i]
        line = cost0 + (rows - rows0) / (rows1 - rows0) * (cost1 - cost0)
        return area / nearest * max(line, cost0 * min(rows / rows0, 1.0))

    def _nearest(self, kind: str, area: int) -> tuple[int, tuple[tuple[int, float], ...]]:
        known = [(other, points) for (name, other), points in self.measured.items() if name == kind]
        return min(known, key=lambda entry: abs(entry[0] - area), default=(area, ((1, 0.0),)))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps([[*key, points] for key, points in self.measured.items()], indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "CostTable":
        """Raises ValueError or TypeError for a file that `save` did not write."""
        rows = json.loads(path.read_text())
        return cls(
            {(str(kind), int(area)): tuple((int(n), float(s)) for n, s in points) for kind, area, points in rows}
        )

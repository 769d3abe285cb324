"""Measured seconds of one step per size and number of rows, and what follows for batching."""

import bisect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from instantid.engine.task import Size

WORTHWHILE = 0.75
"""Rows join a batch only if the joint step costs at most this share of two separate steps: two equal requests are then
answered sooner on average than one after the other."""


@dataclass(frozen=True)
class CostTable:
    """Costs in seconds. For each size: (rows, seconds of a step) with rising rows; seconds to decode one picture."""

    seconds: Mapping[Size, tuple[tuple[int, float], ...]]
    decodes: Mapping[Size, float] = field(default_factory=dict)
    _known: dict[tuple[Size, int], float] = field(default_factory=dict, compare=False, repr=False)

    def step(self, size: Size, rows: int) -> float:
        """Seconds of one step: measured, interpolated between rows, or scaled by area from the nearest size."""
        if (size, rows) not in self._known:
            self._known[size, rows] = self._estimate(size, rows)
        return self._known[size, rows]

    def decode(self, size: Size) -> float:
        """Seconds to decode one picture; 0 where it was never measured."""
        if (size, 0) not in self._known:
            known, scale = self._nearest(size)
            self._known[size, 0] = scale * self.decodes.get(known, 0.0)
        return self._known[size, 0]

    def _estimate(self, size: Size, rows: int) -> float:
        known, scale = self._nearest(size)
        points = self.seconds[known]
        if len(points) == 1:
            return scale * points[0][1] * rows / points[0][0]
        i = min(max(bisect.bisect_left(points, (rows, 0.0)), 1), len(points) - 1)
        (rows0, cost0), (rows1, cost1) = points[i - 1], points[i]
        share = (rows - rows0) / (rows1 - rows0)
        return scale * max(cost0 + share * (cost1 - cost0), cost0 * rows / rows0 if rows < rows0 else cost0)

    def max_rows(self, size: Size) -> int:
        """The largest batch that was measured; larger ones are never formed."""
        return self.seconds[self._nearest(size)[0]][-1][0]

    def joining_pays(self, size: Size, rows: int, more: int) -> bool:
        """Whether `more` rows in the same step are clearly cheaper than in a step of their own."""
        if rows + more > self.max_rows(size):
            return False
        apart = self.step(size, rows) + self.step(size, more)
        return self.step(size, rows + more) <= WORTHWHILE * apart

    def _nearest(self, size: Size) -> tuple[Size, float]:
        area = size[0] * size[1]
        known = min(self.seconds, key=lambda other: abs(other[0] * other[1] - area))
        return known, area / (known[0] * known[1])

    def save(self, path: Path) -> None:
        rows = [
            {"height": h, "width": w, "seconds": list(points), "decode": self.decodes.get((h, w), 0.0)}
            for (h, w), points in self.seconds.items()
        ]
        path.write_text(json.dumps(rows, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "CostTable":
        """Raises ValueError, KeyError or TypeError for a file that `save` did not write."""
        rows = {(int(r["height"]), int(r["width"])): r for r in json.loads(path.read_text())}
        return cls(
            {size: tuple((int(n), float(s)) for n, s in row["seconds"]) for size, row in rows.items()},
            {size: float(row["decode"]) for size, row in rows.items()},
        )

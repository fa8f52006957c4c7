"""The figures of a bench, as they gather: samples by side, and what they come to."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TypedDict

SIDES = ("ours", "fork", "stock", "floor")


class Summary(TypedDict):
    """What samples come to, in the figure's unit."""

    n: int
    min: float
    median: float
    p95: float
    max: float


def summary(samples: Sequence[float]) -> Summary:
    """Sums up one or more samples; p95 is interpolated between its two neighbours."""
    ordered = sorted(samples)
    place = 0.95 * (len(ordered) - 1)
    low = ordered[int(place)]
    high = ordered[min(int(place) + 1, len(ordered) - 1)]
    return {
        "n": len(ordered),
        "min": round(ordered[0], 4),
        "median": round(median(ordered), 4),
        "p95": round(low + (high - low) * (place % 1), 4),
        "max": round(ordered[-1], 4),
    }


class Figures:
    """Samples by figure, unit and side, in the order in which the figures came up."""

    def __init__(self) -> None:
        """Begins with none."""
        self.samples: dict[tuple[str, str], dict[str, list[float]]] = {}

    def add(self, figure: str, unit: str, side: str, *values: float) -> None:
        """Adds samples to one side of a figure; with none, the figure is there, and null."""
        sides = self.samples.setdefault((figure, unit), {})
        if values:
            sides.setdefault(side, []).extend(values)

    def put(self, figure: str, unit: str, side: str, value: float) -> None:
        """Sets one side of a figure to a single value, whatever it was."""
        self.samples.setdefault((figure, unit), {})[side] = [value]

    def of(self, figure: str, side: str) -> list[float]:
        """The samples of one side of a figure, none if there are none."""
        for (name, _unit), sides in self.samples.items():
            if name == figure:
                return sides.get(side, [])
        return []

    def rows(self) -> list[dict[str, object]]:
        """One dictionary a figure: figure, unit, and a summary or None for each side."""
        return [
            {
                "figure": figure,
                "unit": unit,
                **{side: summary(sides[side]) if side in sides else None for side in SIDES},
            }
            for (figure, unit), sides in self.samples.items()
        ]

    def write(self, folder: Path) -> None:
        """Writes latest.json, the rows, and samples.json, what they were made from."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "latest.json").write_text(json.dumps(self.rows(), indent=2) + "\n")
        samples = [
            {
                "figure": figure,
                "unit": unit,
                **{side: [round(value, 4) for value in sides[side]] for side in sides},
            }
            for (figure, unit), sides in self.samples.items()
        ]
        lines = ",\n".join(f"  {json.dumps(row)}" for row in samples)
        (folder / "samples.json").write_text(f"[\n{lines}\n]\n")

"""The table at the end."""

from typing import Any

from rich.console import Console
from rich.table import Table

from bench.figures import SIDES


def show(
    rows: list[dict[str, Any]], dropped: list[str], disturbance: float | None, console: Console
) -> None:
    """Prints a row a figure: the median, and around it the least and the most.

    Args:
        rows: As they are written to latest.json.
        dropped: What was not measured.
        disturbance: The CPU cores that other containers used meanwhile, if that is known.
        console: Where to.
    """
    table = Table("figure", "unit", *SIDES, box=None, header_style="bold")
    for row in rows:
        table.add_row(row["figure"], row["unit"], *(cell(row[side]) for side in SIDES))
    console.print(table)
    console.print("Median (least to most, number of samples where there are more than one).")
    if disturbance is not None:
        console.print(f"Other containers used {disturbance:.2f} cores meanwhile.")
    for name in dropped:
        console.print(f"Not measured for want of time: {name}")


def cell(found: dict[str, Any] | None) -> str:
    """One side of a figure."""
    if found is None:
        return "-"
    middle = number(found["median"])
    if found["n"] == 1:
        return middle
    return f"{middle} ({number(found['min'])} to {number(found['max'])}, {found['n']})"


def number(value: float) -> str:
    """Three digits that count, more where they come before the point."""
    return f"{value:.0f}" if abs(value) >= 100 or value == 0 else f"{value:.3g}"

"""The bench as a picture: how late runs begin, and what a run costs."""

from pathlib import Path

import matplotlib as mpl

mpl.use("svg")  # no display is needed, nor looked for

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.figures import Figures
from bench.measure import LATE, cost
from bench.meter import ENGINE, FLOWS
from bench.stacks import FORK_WORKER, GATE

# Okabe and Ito's, which the colour-blind tell apart, too.
COLOURS = {"ours": "#0072B2", "fork": "#009E73", "stock": "#D55E00"}
PARTS = {
    FLOWS: "#0072B2",
    "server": "#E69F00",
    "worker": "#009E73",
    FORK_WORKER: "#F0E442",
    GATE: "#000000",
    "postgres": "#CC79A7",
    "upstream": "#56B4E9",
    ENGINE: "#999999",
}
LINEAR = 0.1  # seconds around 0 in which the logarithmic axis is linear, since runs may be early


def draw(figures: Figures, burst: int, path: Path) -> None:
    """Writes the picture as SVG.

    Args:
        figures: With all that has been measured.
        burst: How many runs the burst had whose cost is shown.
        path: Of the file.
    """
    # The same file from the same samples; text as text, which keeps it small.
    with mpl.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 9}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        draw_lateness(left, figures)
        draw_cost(right, figures, burst)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        # White, whatever the page: the text is black.
        figure.savefig(path, facecolor="white", metadata={"Date": None})
        plt.close(figure)


def draw_lateness(axes: Axes, figures: Figures) -> None:
    """The share of runs that had begun by then."""
    for side, colour in COLOURS.items():
        late = sorted(figures.of(LATE, side))
        label = f"{side} ({len(late)} runs)"
        axes.ecdf(late, color=colour, label=label, linewidth=2)
        axes.plot(late, [(n + 1) / len(late) for n in range(len(late))], "o", color=colour, ms=3)
    axes.set_xscale("symlog", linthresh=LINEAR)
    axes.axvline(0, color="black", linewidth=1)
    axes.set(xlabel="seconds after its time (before: too early)", ylabel="runs that had begun")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title("When a scheduled run's first line runs")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def draw_cost(axes: Axes, figures: Figures, burst: int) -> None:
    """CPU time a run, by who spent it."""
    sides = ["floor", "fork", "ours", "stock"]
    left = [0.0] * len(sides)
    for part, colour in PARTS.items():
        found = [max(0.0, sum(figures.of(cost(burst, part), side))) for side in sides]
        axes.barh(sides, found, left=left, color=colour, label=part)
        left = [a + b for a, b in zip(left, found, strict=True)]
    for place, total in enumerate(left):
        axes.text(total, place, f" {total:.2f}", va="center")
    axes.set(xlabel="core-seconds", xlim=(0, max(left) * 1.15))
    axes.set_title(f"CPU time a run, {burst} at once")
    axes.legend(frameon=False, fontsize=8, loc="lower right")

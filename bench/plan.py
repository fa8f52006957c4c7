"""What a bench does, in order, and how it keeps to its time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench import growth, measure
from bench.machine import Machine

REMOVAL_SECONDS = 20
LEAD_SECONDS = 35  # about what `Machine.lead` will say


@dataclass(frozen=True)
class Step:
    """One measurement.

    Attributes:
        name: What the progress calls it.
        seconds: How long it is thought to take.
        act: Does it, and may return something to be told.
        worth: 0 for a step that has to be; the others are dropped where time is short, those of
            the highest number first.
    """

    name: str
    seconds: float
    act: Callable[[], object]
    worth: int = 0


def steps(machine: Machine) -> list[Step]:
    """Everything, in order; sides take turns."""
    sizes = machine.sizes
    size: list[growth.Size] = []
    return [
        Step("images", 30, partial(images, machine)),
        Step("first start", 45, partial(measure.first_start, machine)),
        Step(f"idle, {sizes.idle} s", sizes.idle + 2, partial(measure.idle, machine)),
        *late_steps(machine, first=True),
        Step("ad hoc", ad_hoc_seconds(machine), partial(measure.ad_hoc, machine)),
        Step("the gate", sizes.asking * 2, partial(measure.asking, machine)),
        Step("database before", 1, lambda: size.append(growth.Size(machine))),
        *(step for _ in range(1, sizes.blocks) for step in late_steps(machine, first=False)),
        *burst_steps(machine),
        Step("other containers", 0, machine.look_around),
        Step("database after", 1, lambda: size[0].grown()),
        Step("start of ours", 20, partial(measure.start, machine, machine.ours)),
        Step("start of stock", 20, partial(measure.start, machine, machine.stock), worth=2),
        Step("stock begins to go", 0, machine.let_stock_go),
        *growth_steps(machine),
        Step("vacuum", 20, partial(growth.vacuum, machine)),
    ]


def late_steps(machine: Machine, first: bool) -> list[Step]:
    """A block of scheduled runs of each side; the first also has those due at the same second."""
    sizes = machine.sizes
    ours = LEAD_SECONDS + sizes.ours_late * sizes.ours_apart + (10 if first else 2)
    stock = LEAD_SECONDS + sizes.stock_late * sizes.stock_apart + 8
    stock += 15 + 4 * sizes.together if first else 0
    return [
        Step(
            f"lateness of {stack.side}",
            seconds,
            partial(measure.lateness, machine, stack, first),
            worth=3 if stack is machine.stock and not first else 0,
        )
        for stack, seconds in (
            (machine.ours, ours),
            *([(machine.fork, LEAD_SECONDS + sizes.fork_late)] if first else []),
            (machine.stock, stock),
        )
    ]


def ad_hoc_seconds(machine: Machine) -> float:
    """How long the ad-hoc runs of all sides may take."""
    sizes = machine.sizes
    return sizes.groups * (5 * sizes.ours_ad_hoc + 9 * sizes.stock_ad_hoc + sizes.floor_ad_hoc)


def burst_steps(machine: Machine) -> list[Step]:
    """The bursts of all sides."""
    sizes, ours, stock = machine.sizes, machine.ours, machine.stock
    few, many = sizes.burst, sizes.big_burst
    found = [
        Step(f"burst of {few}, ours", 5 + few, partial(measure.burst, machine, ours, few)),
        Step(f"burst of {few}, stock", 8 + 4 * few, partial(measure.burst, machine, stock, few)),
        Step(
            f"burst of {few}, fork", 5 + few / 2, partial(measure.burst, machine, machine.fork, few)
        ),
        Step("burst, floor", 3 + few, partial(measure.floor_burst, machine)),
    ]
    if many:
        found += [
            Step(f"burst of {many}, ours", 5 + many, partial(measure.burst, machine, ours, many)),
            Step(
                f"burst of {2 * many}, fork",
                5 + many,
                partial(measure.burst, machine, machine.fork, 2 * many),
            ),
            Step(
                f"burst of {many}, stock",
                8 + 4 * many,
                partial(measure.burst, machine, stock, many),
                worth=4,
            ),
        ]
    return found


def growth_steps(machine: Machine) -> list[Step]:
    """Ever more deployments; the highest number is worth the most."""
    sizes = machine.sizes
    seconds = sizes.level_idle + LEAD_SECONDS + sizes.ours_apart * sizes.level_late + 8
    found = [Step("growth, 1 deployment", 0, partial(growth.base, machine))]
    for count in sizes.levels:
        act = partial(growth.level, machine, count)
        worth = 0 if count == sizes.levels[-1] else 1
        found.append(Step(f"growth, {count} deployments", seconds, act, worth))
    return found


def images(machine: Machine) -> None:
    """Every image of both, and the groups of their flow containers."""
    for stack in machine.stacks:
        stack.make("images", env=stack.settings)
    machine.hold()


def carry_out(
    plan: Sequence[Step], deadline: float, console: Console
) -> tuple[list[str], list[str]]:
    """Carries out the steps; returns those dropped for want of time, and those that had to be.

    Args:
        plan: In order.
        deadline: When it has to be over, in monotonic seconds.
        console: Where progress is shown.
    """
    dropped, late = [], list[str]()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=sum(step.seconds for step in plan))
        for number, step in enumerate(plan):
            now = time.monotonic()
            if step.worth and now + step.seconds + needed(plan[number + 1 :], step) > deadline:
                dropped.append(step.name)
                console.print(f"  --    {step.name}: dropped, there is no time left for it")
            elif now > deadline:
                late.append(step.name)
                console.print(
                    f"  FAIL  {step.name}: the time is over; quiet the machine, "
                    "or give it more: make bench MINUTES=…"
                )
            else:
                progress.update(bar, description=step.name)
                note = step.act()
                took = f"{time.monotonic() - now:.0f} s ({step.seconds:.0f} s planned)"
                console.print(f"  ok    {step.name}: {took}{f': {note}' if note else ''}")
            progress.advance(bar, step.seconds)
    return dropped, late


def needed(later: Sequence[Step], step: Step) -> float:
    """How long the later steps take that are worth more than this one, in seconds."""
    return sum(other.seconds for other in later if other.worth < step.worth)

"""`make bench`: ours, stock and the floor, measured in one run on this machine.

Prints a table and writes bench/results/ and docs/images/bench.svg; with --quick, a trial of a few
minutes, bench/results/trial/. Exit code 0 only if everything was measured.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from subprocess import CalledProcessError
from types import FrameType

import psycopg2
from requests import RequestException
from rich.console import Console

from bench.machine import Machine, warn
from bench.picture import draw
from bench.plan import REMOVAL_SECONDS, carry_out, steps
from bench.problem import Problem
from bench.report import show
from bench.sizes import FULL, QUICK
from tests.stack import PROJECT, settings_of

RESULTS = PROJECT / "bench" / "results"
PICTURE = PROJECT / "docs" / "images" / "bench.svg"


def main() -> int:
    """Measures; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="a trial with few runs")
    extent.add_argument(
        "--minutes",
        type=int,
        default=FULL.minutes,
        help="more time for a slow machine, or much of it is dropped (default: %(default)s)",
    )
    asked = parser.parse_args()
    quick = asked.quick
    if asked.minutes < FULL.minutes:
        parser.error(
            f"--minutes: expected {FULL.minutes} or more, found {asked.minutes}; "
            "fewer measurements: python -m bench --quick"
        )
    # A user's own settings must not lead the bench to the user's own stack.
    for key in [*settings_of(PROJECT / ".env.example"), "COMPOSE_FILE", "COMPOSE_PROFILES"]:
        os.environ.pop(key, None)
    signal.signal(signal.SIGTERM, interrupt)
    start = time.monotonic()
    sizes = QUICK if quick else replace(FULL, minutes=asked.minutes)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    machine, code = Machine(folder, sizes), 1
    dropped: list[str] = []
    measured = False
    try:
        deadline = start + sizes.minutes * 60 - REMOVAL_SECONDS
        dropped, late = carry_out(steps(machine), deadline, console)
        dropped += late
        code = 1 if late else 0
        measured = True
    except Problem as problem:
        fail(problem, machine)
    except (AssertionError, CalledProcessError, RequestException, psycopg2.Error) as error:
        found = f"{error}\n{getattr(error, 'stderr', None) or ''}".strip()
        fail(Problem("the stacks to do as they are told", found), machine)
    except KeyboardInterrupt:
        warn("\nInterrupted.")
        code = 130
    finally:
        code = remove(machine, folder) or code
    show(machine.figures.rows(), dropped, machine.disturbance, console)
    if measured:
        write(machine, RESULTS / "trial" if quick else RESULTS, quick, console)
    console.print(f"Took {time.monotonic() - start:.0f} s.")
    return code


def write(machine: Machine, results: Path, quick: bool, console: Console) -> None:
    """Writes figures, samples and picture; a trial's all beside each other, to be ignored."""
    machine.figures.write(results)
    picture = results / PICTURE.name if quick else PICTURE
    draw(machine.figures, machine.sizes.burst, picture)
    console.print(f"Written: {results.relative_to(PROJECT)}/, {picture.relative_to(PROJECT)}")


def fail(problem: Problem, machine: Machine) -> None:
    """Says what ended the bench, and where the stacks' logs and runs are now."""
    warn(f"  FAIL  bench\n{problem}")
    for folder in machine.leave_evidence():
        warn(f"evidence: {folder.relative_to(PROJECT)}/")


def interrupt(number: int, _frame: FrameType | None) -> None:
    """A SIGTERM ends the bench as Ctrl-C does, so that it cleans up."""
    raise KeyboardInterrupt


def remove(machine: Machine, folder: Path) -> int:
    """Removes both stacks with their images, whatever else is pressed; 1 if something is left."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    warn("Removing both stacks.")
    left = machine.remove()
    shutil.rmtree(folder, ignore_errors=True)
    if left:
        warn(
            f"  FAIL  removal\nexpected: nothing left of the bench\nfound:    {', '.join(left)}\n"
            f"next:     docker compose --project-name {machine.ours.project} down --volumes, "
            f"and the same for {machine.stock.project}"
        )
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())

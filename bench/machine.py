"""The two stacks on this machine and the meter that watches them."""

import math
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from bench.figures import Figures
from bench.meter import CHILDREN, FLOWS, OTHERS, Cgroups, Part, Reading, by_part, rates, read, work
from bench.sizes import Sizes
from bench.stacks import FORK_WORKER, BenchStack, group_name, hold
from tests.stack import EVIDENCE, docker

FLOOR: Part = ("floor", FLOWS)
# What a bare container asks of the upstream, with the flow's own library.
GET = "import requests; requests.get('http://upstream:8000/api/activity').raise_for_status()"


class Machine:
    """Both stacks, their control groups, and the figures so far."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        """Makes the two copies of the project below a folder; starts nothing."""
        self.sizes = sizes
        self.figures = Figures()
        self.groups = Cgroups()
        self.idle: dict[Part, float] = {}
        self.token = secrets.token_hex(3)
        self.watched: dict[Part, PurePosixPath] = {}
        self.held: dict[Part, PurePosixPath] = {}
        self.prefetch: dict[str, float] = {}
        self.begun: Reading | None = None
        self.disturbance: float | None = None  # CPU cores
        self.holders: list[str] = []
        self.pool = ThreadPoolExecutor()
        self.leaving: Future[list[str]] | None = None
        self.stacks = []
        for side in ("ours", "stock"):
            (folder / side).mkdir()
            self.stacks.append(BenchStack(folder / side, side, self.token))
        self.ours, self.stock = self.stacks
        self.fork = self.ours.forked()

    def hold(self) -> None:
        """Makes the parent groups of flow containers; needs the flow image."""
        floor = group_name(f"bench-floor-{self.token}")
        wanted = [(stack.part(), stack.group) for stack in self.stacks] + [(FLOOR, floor)]
        for part, group in wanted:
            name = f"bench-{part[0]}-holder-{self.token}"
            self.holders.append(name)
            self.held[part] = hold(self.groups, self.ours.image, group, name)
        self.floor_group = floor

    def find(self) -> None:
        """Finds the control groups anew; after services were started."""
        self.watched = dict(self.held)
        for stack in (*self.stacks, self.fork):
            self.watched |= stack.parts(self.groups)
            self.prefetch[stack.side] = stack.prefetch()
        # Other containers, dead ones included, where all are in one group that has nothing else.
        within = self.watched[self.ours.part("server")].parent
        if within.name == "docker":
            self.watched[OTHERS] = within

    def read(self) -> Reading:
        """All CPU times now."""
        return read(self.groups, self.watched)

    def lead(self, stack: BenchStack) -> int:
        """How many seconds ahead to schedule a run, for the worker's prefetch to have its say."""
        return max(self.sizes.least_lead, math.ceil(self.prefetch[stack.side]) + 5)

    def bare(self) -> None:
        """A bare container that does the flow's GET, and nothing else."""
        network = self.ours.flows_network
        docker(
            *f"run --rm --network {network} --cgroup-parent {self.floor_group}".split(),
            *("--entrypoint", "python", self.ours.image, "-c", GET),
        )

    def parts(self, before: Reading, after: Reading, side: str) -> dict[str, float]:
        """CPU seconds of one side's work between two readings, by part.

        The floor's upstream is ours; and the `docker run` that starts its container is a child of
        the bench's that counts, as a worker would.
        """
        owner = side if side == "stock" else "ours"
        own = {"floor": FLOWS, "fork": FORK_WORKER}.get(side, FLOWS)
        services = {
            "ours": self.ours.services,
            "stock": self.stock.services,
            "floor": ["upstream"],
            "fork": ["server", "postgres", "upstream"],
        }
        parts = [(side, own), *((owner, service) for service in services[side])]
        ignore = {CHILDREN} if side == "floor" else set()
        return by_part(work(before, after, self.idle), parts, ignore)

    def look_around(self) -> None:
        """Finds out how busy other containers were since `idle` began, where that can be known.

        Has to be before a service is started again: its control group begins anew.
        """
        if self.begun is not None:
            self.disturbance = rates(self.begun, self.read()).get(OTHERS)

    def let_stock_go(self) -> None:
        """Begins to remove stock, which has been measured, while ours goes on."""
        self.leaving = self.pool.submit(self.stock.remove_all)
        self.watched = {part: path for part, path in self.watched.items() if part[0] != "stock"}

    def leave_evidence(self) -> list[Path]:
        """Writes what the stacks that are up have to say, each to a folder; returns these."""
        folders = []
        for stack in [self.ours] if self.leaving else self.stacks:
            if (stack.folder / ".env").exists():
                stack.leave_evidence(folder := EVIDENCE / stack.project)
                folders.append(folder)
        return folders

    def remove(self) -> list[str]:
        """Removes all of it; returns what is left all the same."""
        if self.leaving:
            wait([self.leaving])
        subprocess.run(["docker", "rm", "--force", *self.holders], capture_output=True)
        left = [
            name for names in self.pool.map(BenchStack.remove_all, self.stacks) for name in names
        ]
        for path in self.held.values():
            self.groups.remove(path)
        return left


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Appends how long a block took, in seconds."""
    start = time.monotonic()
    yield
    seconds.append(time.monotonic() - start)


def warn(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)

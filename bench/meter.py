"""CPU time and memory, as the kernel's control groups count them, of version 1 and 2 alike.

A container's group goes with it, and its CPU time too, but what was spent below a parent group
stays counted in that. So flow containers have parent groups: ours, stock's, and the floor's.
"""

import resource
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bench.problem import Problem

ROOT = Path("/sys/fs/cgroup")
FLOWS = "flow containers"
ENGINE = "engine and kernel"


class Cgroups:
    """The control groups below a root; paths are as in /proc/PID/cgroup."""

    def __init__(self, root: Path = ROOT) -> None:
        """Finds out which version is mounted there."""
        self.root = root
        self.unified = (root / "cgroup.controllers").exists()

    def path(self, table: str) -> PurePosixPath:
        """A process's group.

        Args:
            table: The text of its /proc/PID/cgroup.

        Raises:
            Problem: It is in none that counts CPU time.
        """
        for line in table.splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" if self.unified else "cpuacct" in controllers.split(","):
                return PurePosixPath(path)
        raise Problem("a control group that counts CPU time", table or "none at all")

    def cpu(self, path: PurePosixPath) -> float:
        """The CPU time of a group and all below it since it was made, in seconds."""
        if self.unified:
            return self._field("", path, "cpu.stat", "usage_usec") / 1e6
        return int(self._read("cpuacct", path, "cpuacct.usage")) / 1e9

    def memory(self, path: PurePosixPath) -> int:
        """The memory that a group uses, in bytes, without the page cache that could go at once."""
        if self.unified:
            used = int(self._read("", path, "memory.current"))
            return used - self._field("", path, "memory.stat", "inactive_file")
        used = int(self._read("memory", path, "memory.usage_in_bytes"))
        return used - self._field("memory", path, "memory.stat", "total_inactive_file")

    def remove(self, path: PurePosixPath) -> None:
        """Removes an empty group wherever it is mounted; whoever may not, leaves it."""
        for mount in [self.root] if self.unified else self.root.iterdir():
            try:
                (mount / path.relative_to("/")).rmdir()
            except OSError:
                continue

    def _field(self, controller: str, path: PurePosixPath, file: str, name: str) -> int:
        for line in self._read(controller, path, file).splitlines():
            key, value = line.split()
            if key == name:
                return int(value)
        raise Problem(f"{name} in {file} of group {path}", "none")

    def _read(self, controller: str, path: PurePosixPath, file: str) -> str:
        found = self.root / controller / path.relative_to("/") / file
        try:
            return found.read_text()
        except OSError as error:
            raise Problem(
                f"{file} of the control group {path}",
                str(error),
                "run it on the machine that the Docker engine runs on: make bench",
            ) from error


def group_of(groups: Cgroups, pid: int) -> PurePosixPath:
    """The control group of a process of this machine."""
    try:
        return groups.path(Path(f"/proc/{pid}/cgroup").read_text())
    except OSError as error:
        raise Problem(
            f"process {pid} of a container on this machine",
            str(error),
            "run it on the machine that the Docker engine runs on: make bench",
        ) from error


Part = tuple[str, str]  # whose (ours, stock, floor, …), and which of its parts
MACHINE: Part = ("machine", "all")
BENCH: Part = ("bench", "itself")
CHILDREN: Part = ("bench", "children")
OTHERS: Part = ("others", "containers")


@dataclass(frozen=True)
class Reading:
    """CPU seconds so far by part, and when they were read (monotonic seconds)."""

    at: float
    cpu: Mapping[Part, float]


def read(groups: Cgroups, watched: Mapping[Part, PurePosixPath]) -> Reading:
    """Reads all at once.

    Args:
        groups: Where to read.
        watched: The groups by part. OTHERS may be the group that the services' own groups are in,
            too: what is left of it without them counts.
    """
    cpu = {MACHINE: groups.cpu(PurePosixPath("/"))}
    for name, who in ((BENCH, resource.RUSAGE_SELF), (CHILDREN, resource.RUSAGE_CHILDREN)):
        usage = resource.getrusage(who)
        cpu[name] = usage.ru_utime + usage.ru_stime
    cpu |= {part: groups.cpu(path) for part, path in watched.items()}
    if OTHERS in watched:
        within = (part for part, path in watched.items() if path.parent == watched[OTHERS])
        cpu[OTHERS] -= sum(cpu[part] for part in within)
    return Reading(time.monotonic(), cpu)


def spent(before: Reading, after: Reading) -> dict[Part, float]:
    """CPU seconds between two readings; what is in one of them alone is left out."""
    both = before.cpu.keys() & after.cpu.keys()
    return {part: after.cpu[part] - before.cpu[part] for part in both}


def rates(before: Reading, after: Reading) -> dict[Part, float]:
    """CPU cores in use between two readings."""
    wall = after.at - before.at
    return {part: seconds / wall for part, seconds in spent(before, after).items()}


def work(before: Reading, after: Reading, idle: Mapping[Part, float]) -> dict[Part, float]:
    """CPU seconds between two readings beyond what an idle machine would have spent in the time."""
    wall = after.at - before.at
    return {
        part: seconds - idle.get(part, 0.0) * wall for part, seconds in spent(before, after).items()
    }


def by_part(
    done: Mapping[Part, float], parts: Iterable[Part], ignore: set[Part]
) -> dict[str, float]:
    """CPU seconds of some parts by name, and of engine and kernel: whatever no container spent.

    Args:
        done: What `work` says of all.
        parts: Those that the work was for.
        ignore: Whose share is engine and kernel's: processes that start containers.
    """
    found = {part[1]: done[part] for part in parts}
    others = sum(seconds for part, seconds in done.items() if part not in {MACHINE, *ignore})
    return {**found, ENGINE: done[MACHINE] - others}

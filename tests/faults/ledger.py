"""A ledger outside Prefect and Docker, and what it must say once everything has healed.

The test flow writes into it when it starts and when it has ended. The server's own opinion is only
asked for what the ledger can't know: runs that never end, and containers that are left over.
"""

import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
# From then on the server calls a run late (docker-compose.yml), and so does the checker.
LATE_SECONDS = 30.0
# A flow that is killed so soon after its last line may not have got to having its end noted
# (`prefect_fork.execute.done`), and nothing can tell it from one that is killed within that line.
NOTING_SECONDS = 1.0


@dataclass(frozen=True, order=True)
class Slot:
    """A time at which a deployment is due, in seconds since the epoch, to the millisecond."""

    due: float
    deployment: str


@dataclass(frozen=True)
class Entry:
    """What the flow wrote.

    Attributes:
        event: ``load`` (its module), ``start`` or ``end``.
        deployment: Whose run it is.
        due: When it was to run, in seconds since the epoch.
        run: The id of its flow run.
        execution: An id of this very call of the flow, another one for each attempt.
        at: The time, by the flow's own clock; for ``start`` that of its first line.
    """

    event: str
    deployment: str
    due: float
    run: str
    execution: str
    at: float

    @property
    def slot(self) -> Slot:
        """What it was an execution of."""
        return Slot(round(self.due, 3), self.deployment)


@dataclass(frozen=True)
class Run:
    """A flow run, as the server has it.

    Attributes:
        id: Of the flow run.
        slot: What it is a run of.
        state: The type of its state.
        late: Has it ever been marked Late?
        taken: When a worker first took it, in seconds since the epoch.
        ended: When it came to its final state.
    """

    id: str
    slot: Slot
    state: str
    late: bool = False
    taken: float | None = None
    ended: float | None = None


@dataclass(frozen=True)
class Container:
    """A flow run's container."""

    id: str
    run: str
    running: bool


@dataclass(frozen=True)
class Kill:
    """A time, in seconds since the epoch, in which flows of a deployment were killed."""

    deployment: str
    begun: float
    over: float


@dataclass(frozen=True)
class Verdict:
    """Which slots break which rule; `redone` and `late` ones break none, but have to be known.

    Attributes:
        lost: No execution has completed.
        doubled: The executions that completed, where that is more than one.
        redone: More than one, where all but the last were killed as they ended.
        early: By how many seconds the first line ran before its time.
        stuck: Runs past their time and in no final state.
        left_over: Containers of runs that have ended, and ended containers.
        late: By how many seconds, where that is more than `LATE_SECONDS`.
        unmarked: Late ones, none of whose runs the server ever called Late.
    """

    lost: list[Slot] = field(default_factory=list)
    doubled: dict[Slot, list[str]] = field(default_factory=dict)
    early: dict[Slot, float] = field(default_factory=dict)
    stuck: list[Run] = field(default_factory=list)
    left_over: list[Container] = field(default_factory=list)
    redone: list[Slot] = field(default_factory=list)
    late: dict[Slot, float] = field(default_factory=dict)
    unmarked: list[Slot] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Is every rule kept?"""
        return not (self.lost or self.doubled or self.early or self.stuck or self.left_over)

    def __str__(self) -> str:
        """How many break each rule, on one line."""
        return ", ".join(f"{len(getattr(self, f.name))} {f.name}" for f in fields(self))


def due_slots(
    deployment: str, interval: int, begin: float, end: float, anchor: float = 0
) -> Iterator[Slot]:
    """The slots of an interval schedule from `begin` on and before `end`; all in seconds."""
    due = begin + (anchor - begin) % interval
    while due < end:
        yield Slot(round(due, 3), deployment)
        due += interval


def check(
    slots: Iterable[Slot],
    entries: Iterable[Entry],
    runs: Iterable[Run],
    containers: Iterable[Container],
    kills: Sequence[Kill] = (),
) -> Verdict:
    """Holds what happened against what had to happen.

    Args:
        slots: All that were due.
        entries: The whole ledger; a line that was written twice counts once.
        runs: The runs that were due, and any others.
        containers: Those that exist now.
        kills: When running flows were killed.

    Returns:
        What isn't as it should be; of slots that weren't due, nothing is lost.
    """
    starts: dict[Slot, list[float]] = defaultdict(list)
    ends: dict[Slot, dict[str, Entry]] = defaultdict(dict)
    for entry in entries:
        if entry.event == "start":
            starts[entry.slot].append(entry.at)
        elif entry.event == "end":
            ends[entry.slot][entry.execution] = entry
    again = {slot: found for slot, found in ends.items() if len(found) > 1}
    redone = [slot for slot, found in again.items() if killed_at_the_end(found.values(), kills)]
    due = sorted(set(slots))
    known = {run.id: run for run in runs}
    marked = {run.slot for run in known.values() if run.late}
    late = {
        slot: min(starts[slot]) - slot.due
        for slot in due
        if slot in starts and min(starts[slot]) - slot.due > LATE_SECONDS
    }
    return Verdict(
        lost=[slot for slot in due if slot not in ends],
        doubled={slot: sorted(found) for slot, found in again.items() if slot not in redone},
        early={slot: slot.due - min(at) for slot, at in starts.items() if min(at) < slot.due},
        stuck=[run for run in known.values() if run.slot in due and run.state not in FINAL],
        left_over=[
            container
            for container in containers
            if not container.running
            or container.run not in known
            or known[container.run].state in FINAL
        ],
        redone=redone,
        late=late,
        unmarked=[slot for slot in late if slot not in marked],
    )


def killed_at_the_end(ends: Iterable[Entry], kills: Sequence[Kill]) -> bool:
    """Are these of one run, all of whose executions but the last were killed as they ended?"""
    *earlier, last = sorted(ends, key=lambda entry: entry.at)
    return all(
        end.run == last.run
        and any(
            kill.deployment == end.deployment and kill.begun - NOTING_SECONDS <= end.at <= kill.over
            for kill in kills
        )
        for end in earlier
    )


class Ledger:
    """The ledger's server, on this machine, where neither engine nor containers take it along."""

    def __init__(self, path: Path, host: str) -> None:
        """Takes the file to append to, and the address to listen on."""
        self._path = path
        self._path.touch()
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._address = (host, 0)
        self.open()

    @property
    def url(self) -> str:
        """Where to post entries."""
        host, port = self._address
        return f"http://{host}:{port}/"

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._address[1]

    def open(self) -> None:
        """Begins to listen; after `close`, at the same address."""
        ledger = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = str(ledger.append(Entry(**body))).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = False  # what it is about to write, it writes and says so
            block_on_close = True

            def handle_error(self, *_: object) -> None:
                pass  # a client that was killed

        self._server = Server(self._address, Handler)
        self._address = (self._address[0], self._server.server_port)
        threading.Thread(target=self._server.serve_forever, args=(0.1,)).start()

    def close(self) -> None:
        """Refuses connections from now on."""
        self._server.shutdown()
        self._server.server_close()

    def append(self, entry: Entry) -> int:
        """Writes an entry to the disk.

        Returns:
            How many earlier executions of the same slot wrote the same event.
        """
        with self._lock, self._path.open("a") as file:
            file.write(json.dumps(asdict(entry)) + "\n")
            file.flush()
            os.fsync(file.fileno())
            earlier = {
                other.execution
                for other in self._entries
                if (other.event, other.slot) == (entry.event, entry.slot)
            }
            self._entries.append(entry)
        return len(earlier - {entry.execution})

    def entries(self) -> list[Entry]:
        """Everything in the file."""
        with self._path.open() as file:
            return [Entry(**json.loads(line)) for line in file]

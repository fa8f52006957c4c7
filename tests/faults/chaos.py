"""Faults, injected for real while a schedule goes on in both pools, and what became of each slot.

A campaign injects a fault some times, and waits after each only until both pools have done a slot
that was due afterwards. Then everything has to heal, and what doesn't counts against the first
fault that hit its slot. In a soak it heals while the next fault is on, but for the last.
"""

import contextlib
import os
import random
import re
import secrets
import signal
import statistics
import subprocess
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import requests

from tests.faults.ledger import (
    NOTING_SECONDS,
    Container,
    Entry,
    Kill,
    Ledger,
    Run,
    Slot,
    Verdict,
    check,
    due_slots,
)
from tests.stack import Stack, docker, eventually

FLOW = Path(__file__).with_name("ledger_flow.py")
POOLS = ("docker", "fork")
WORKERS = ("worker", "fork-worker")
WITH_WORKER = ("fork",)  # whose flows go with their worker, where containers go on
# From the first minute of a day on, so that the slots are whole multiples of the interval.
ENTRY = """
  - name: {name}
    description: "{note}"
    entrypoint: flows/ledger_flow.py:ledger
    parameters: {{url: "{url}", deployment: "ledger/{name}"}}
    schedules:
      - interval: {interval}
        anchor_date: "2026-01-01T00:00:00+00:00"
        slug: ledger
    work_pool: *{name}-pool
"""
# For what has to reach its time limit; without a schedule.
LIMITED = """
  - name: limited
    description: "{note}"
    entrypoint: flows/ledger_flow.py:limited
    parameters: {{url: "{url}", deployment: ledger/limited}}
    work_pool: *docker-pool
"""
# What a worker takes before its time (docker-compose.yml), it may lose as long before.
PREFETCH_SECONDS = 30
# How long both pools have for a slot after a fault, and everything for healing after the last.
BEAT_SECONDS, HEAL_SECONDS = 120, 180
RUNS = """
SELECT r.id::text, d.name, extract(epoch FROM r.expected_start_time)::float8, r.state_type::text,
  EXISTS (SELECT FROM flow_run_state s WHERE s.flow_run_id = r.id AND s.name = 'Late'),
  (SELECT min(extract(epoch FROM s.timestamp))::float8 FROM flow_run_state s
    WHERE s.flow_run_id = r.id AND s.type = 'PENDING'),
  extract(epoch FROM r.end_time)::float8
FROM flow_run r JOIN deployment d ON d.id = r.deployment_id JOIN flow f ON f.id = d.flow_id
WHERE f.name = 'ledger'
"""
STATES = """
SELECT s.name, extract(epoch FROM s.timestamp)::float8, coalesce(s.message, '')
FROM flow_run_state s WHERE s.flow_run_id = '{run}' ORDER BY s.timestamp
"""
TAKEN = """
SELECT d.name FROM flow_run r JOIN deployment d ON d.id = r.deployment_id
  JOIN flow f ON f.id = d.flow_id
WHERE f.name = 'ledger' AND r.state_type = 'PENDING' AND r.infrastructure_pid IS NULL
"""


def clock(when: float) -> str:
    """A time as logs have it."""
    return datetime.fromtimestamp(when, UTC).strftime("%H:%M:%S.%f")[:-3]


def say(text: str) -> None:
    """Progress, with the time."""
    print(f"{clock(time.time())}  {text}", flush=True)


class Armed:
    """A shell in a container that kills every other process there as soon as it is told to."""

    def __init__(self, container: str) -> None:
        """Waits until the shell is there."""
        self._shell = subprocess.Popen(
            ["docker", "exec", "--interactive", container, "bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._tell("echo armed")
        assert self._shell.stdout is not None and self._shell.stdout.readline() == "armed\n"

    def _tell(self, command: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{command}\n")
        self._shell.stdin.flush()

    def fire(self) -> None:
        """SIGKILL, but for the container's first process, which ends with its only child."""
        self._tell("kill -9 -1")

    def close(self) -> None:
        """Waits for the shell's end, which comes with the container's."""
        with contextlib.suppress(BrokenPipeError):
            self._shell.communicate(timeout=30)


@dataclass
class Injection:
    """One time that a fault was there.

    Attributes:
        fault: Its name.
        times: How many of it came at once.
        begun: When it came.
        over: When it had been taken away; the same, for what lasts no time.
        alive: After how many seconds each pool had done a slot that was due after that.
        error: What went wrong with the injection itself.
    """

    fault: str
    times: int
    begun: float
    over: float = 0
    alive: float | None = None
    error: str = ""


@dataclass
class Row:
    """What became of all slots that a fault hit first."""

    fault: str
    times: int = 0
    hit: int = 0
    lost: int = 0
    doubled: int = 0
    early: int = 0
    stuck: int = 0
    left_over: int = 0
    redone: int = 0
    late: int = 0
    unmarked: int = 0
    alive: list[float] = field(default_factory=list)
    settled: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """A line of the table."""
        numbers = "".join(f"{getattr(self, count):10}" for count in COUNTS)
        line = f"{self.fault:42}{numbers}  {spread(self.alive):>13}  {spread(self.settled):>13}"
        return "\n    ".join([line, *self.errors])

    @property
    def broken(self) -> bool:
        """Is any rule broken, or was the fault itself not what it should have been?"""
        counts = (self.lost, self.doubled, self.early, self.stuck, self.left_over)
        return any(counts) or bool(self.errors)

    @staticmethod
    def head() -> str:
        """The table's first line."""
        names = "".join(f"{count:>10}" for count in COUNTS)
        return f"{'fault':42}{names}  {'runs again s':>13}  {'settled s':>13}"


# A table's columns of numbers.
COUNTS = [found.name for found in fields(Row) if found.type is int]


def spread(seconds: list[float]) -> str:
    """Median and maximum."""
    return f"{statistics.median(seconds):.0f} / {max(seconds):.0f}" if seconds else "-"


class Campaign:
    """A stack with a schedule in both pools, the ledger, and what has been done to it so far."""

    ending = threading.Event()  # set by who wants every campaign to come to its end

    def __init__(self, stack: Stack, ledger: Ledger, outage: float, interval: int = 10) -> None:
        """Deploys the schedule.

        Args:
            stack: One that runs.
            ledger: An empty one.
            outage: How long what is stopped stays away, in seconds.
            interval: Of the schedule, in seconds.
        """
        self.stack, self.ledger, self.outage, self.interval = stack, ledger, outage, interval
        self.injections: list[Injection] = []
        self.repetition = 0
        self.healed_until = 0.0
        self._extra: list[Slot] = []
        self._kills: list[Kill] = []
        self._notes = 0
        self._project = stack.folder / "prefect.yaml"
        self._original = self._project.read_text()
        self._flow = stack.folder / "flows" / FLOW.name
        self._flow.write_text(FLOW.read_text())
        stack.let_reach(str(ledger.port))
        self.deploy()
        # The scheduler looks for what was deployed every 5 s.
        self.since = time.time() + 10
        self._wait_for_beat(self.since)

    def remove(self) -> None:
        """Leaves the stack as it was found."""
        self._project.write_text(self._original)
        self._flow.unlink()
        self.stack.let_reach("")
        for name in (*POOLS, "limited"):
            deployment = self.stack.deployment(f"ledger/{name}")["id"]
            self.stack.api("DELETE", f"/deployments/{deployment}")
        self.stack.make("deploy")

    # ── What faults are made of ──

    def deploy(self) -> None:
        """`make deploy`, in which both pools' entries have changed."""
        self._notes += 1
        entries = "".join(
            ENTRY.format(name=name, note=self._notes, url=self.ledger.url, interval=self.interval)
            for name in POOLS
        )
        entries += LIMITED.format(note=self._notes, url=self.ledger.url)
        self._project.write_text(self._original + entries)
        self.stack.make("deploy")

    @property
    def times(self) -> int:
        """How many runs are to be hit at once."""
        return self.injections[-1].times

    def begins(self) -> None:
        """Notes that the fault comes now."""
        self.injections[-1].begun = time.time()

    @contextlib.contextmanager
    def killing(self, *pools: str) -> Iterator[None]:
        """Notes that flows of these pools are killed meanwhile."""
        begun = time.time()
        yield
        self._kills += [Kill(f"ledger/{name}", begun, time.time()) for name in pools]

    def compose(self, *args: str) -> None:
        """`docker compose …` in the stack's folder."""
        done = self.stack.run("docker", "compose", "--progress", "quiet", *args)
        assert done.returncode == 0, f"docker compose {' '.join(args)}\n{done.stdout}"

    def containers(self, *services: str) -> list[str]:
        """The ids of services' containers."""
        return self.stack.run("docker", "compose", "ps", "--quiet", *services).stdout.split()

    def kill(self, *containers: str) -> None:
        """SIGKILL for all processes of these containers at once."""
        pools = WITH_WORKER if set(containers) & {*self.containers("fork-worker")} else ()
        armed = [Armed(container) for container in containers]
        self.begins()
        with self.killing(*pools):
            for shell in armed:
                shell.fire()
            for shell in armed:
                shell.close()

    def add(self, name: str, seconds: float = 0, **options: Any) -> tuple[Slot, str]:
        """One more run of a pool, in so many seconds; `options` are those of `Stack.start`.

        Returns:
            The slot, one of its own, and the flow run's id.
        """
        due = round(time.time() + seconds + 0.001, 3)
        if due % 1 == 0:  # a whole second may be a slot of the schedule's
            due = round(due + 0.001, 3)
        slot = Slot(due, f"ledger/{name}")
        at = datetime.fromtimestamp(due, UTC)
        run = self.stack.start(slot.deployment, at=at, **options)
        self._extra.append(slot)
        return slot, run

    def wrote(self, event: str, slots: list[Slot], count: int | None = None) -> None:
        """Waits until an event of so many of these slots, by default all, is in the ledger."""
        wanted = len(slots) if count is None else count

        def look() -> bool | None:
            found = {entry.slot for entry in self.ledger.entries() if entry.event == event}
            return len(found & set(slots)) >= wanted or None

        eventually(f"{wanted} {event} of {slots} in the ledger", 60, look)

    def mid_run(self) -> dict[str, list[str]]:
        """A run in each pool that has begun and won't end soon; the flow runs' ids by pool."""
        runs = {}
        for name in POOLS:  # the slower first, or what began at once could end meanwhile
            added = [self.add(name, work=8) for _ in range(self.times)]
            self.wrote("start", [slot for slot, _ in added])
            runs[name] = [run for _, run in added]
        return runs

    def process(self, run: str) -> tuple[str, int]:
        """A forked run's worker's container, and its process there, which leads a group."""

        def look() -> str | None:
            found: str | None = self.stack.api("GET", f"/flow_runs/{run}")["infrastructure_pid"]
            return found

        worker, _, pid = eventually(f"the process of flow run {run}", 10, look).split(":")
        return worker.removeprefix("fork-worker-"), int(pid)

    def misled(self, options: dict[str, dict[str, Any]]) -> list[tuple[Slot, str]]:
        """As many runs as are to be hit of each of these deployments, with these options."""
        names = [name for name in options for _ in range(self.times)]
        return [self.add(name, **options[name]) for name in names]

    def burst(self) -> None:
        """Ten runs at once in each pool, of which a few have begun."""
        slots = [self.add(name, 3)[0] for _ in range(10) for name in POOLS]
        self.wrote("start", slots, 8)

    def lasts(self) -> None:
        """The time that what is away stays away."""
        time.sleep(self.outage)

    # ── Injecting ──

    def inject(self, name: str, times: int = 1) -> None:
        """Injects a fault so many times, and waits after each until both pools do slots again."""
        if FAULTS[name].at_once:
            self._inject(Injection(name, times, time.time()))
        else:
            for _ in range(times):
                self._inject(Injection(name, 1, time.time()))

    def _inject(self, injection: Injection) -> None:
        name = injection.fault
        self.injections.append(injection)
        self.repetition = sum(other.fault == name for other in self.injections)
        try:
            FAULTS[name].inject(self)
        except Exception as error:
            traceback.print_exc()
            injection.error = repr(error)
        instant = FAULTS[name].instant
        injection.over = injection.begun if instant else time.time()
        lasted = injection.over - injection.begun
        say(f"{name}: injected {clock(injection.begun)}, over after {lasted:.1f} s")
        injection.alive = self._wait_for_beat(injection.over)
        again = (
            "no runs" if injection.alive is None else f"runs again after {injection.alive:.1f} s"
        )
        say(f"{name}: {again}; so far {self.verdict(time.time() - 5)}")

    def soak(self, minutes: float, faults: list[str], chance: random.Random) -> None:
        """One of these faults every minute, for so many minutes."""
        end = time.time() + minutes * 60
        while (begun := time.time()) < end:
            self.inject(chance.choice(faults))
            time.sleep(max(0.0, begun + 60 - time.time()))

    def _wait_for_beat(self, begin: float) -> float | None:
        """Waits until each pool has done a slot that was due after `begin`; the seconds since."""
        deadline = time.time() + BEAT_SECONDS
        while time.time() < deadline:
            done = {
                entry.deployment
                for entry in self.ledger.entries()
                if entry.event == "end" and entry.due >= begin
            }
            if len(done) == len(POOLS):
                return time.time() - begin
            time.sleep(0.5)
        return None

    def heal(self) -> Verdict:
        """Waits for all slots that the last fault can have hit, until none is open any more."""
        until = time.time()
        for last in self.injections[-1:]:
            if not FAULTS[last.fault].at_once:
                until = max(until, last.over + PREFETCH_SECONDS)
        self.healed_until = until
        while True:
            verdict = self.verdict(until)
            seconds = time.time() - until
            is_open = verdict.lost or verdict.stuck or verdict.left_over
            if (seconds > 0 and not is_open) or self.ending.is_set() or seconds > HEAL_SECONDS:
                break
            time.sleep(1)
        healed = f"healed after {seconds:.0f} s" if verdict.holds else "not healed"
        say(f"{healed}: {verdict}")
        return verdict

    # ── What became of it ──

    def slots(self, until: float) -> list[Slot]:
        """Every slot that was due until then, by the schedule itself."""
        scheduled = [
            slot
            for name in POOLS
            for slot in due_slots(f"ledger/{name}", self.interval, self.since, until)
        ]
        return scheduled + [slot for slot in self._extra if slot.due <= until]

    def runs(self) -> list[Run]:
        """Every run that the server has of the schedule."""
        return [
            Run(run, Slot(round(due, 3), f"ledger/{name}"), state, late, taken, ended)
            for run, name, due, state, late, taken, ended in self.stack.sql(RUNS)
        ]

    def flow_containers(self) -> list[Container]:
        """Every container of a flow run of this stack."""
        filters = ("label=io.prefect.flow-run-id", f"network={self.stack.flows_network}")
        rows = docker(
            *("ps", "--all", "--no-trunc", "--filter", filters[0], "--filter", filters[1]),
            *("--format", '{{.ID}} {{.Label "io.prefect.flow-run-id"}} {{.State}}'),
        ).splitlines()
        return [
            Container(container, run, state in ("running", "created"))
            for container, run, state in (row.split() for row in rows)
        ]

    def verdict(self, until: float) -> Verdict:
        """Of all slots that were due until then; without runs and containers if nobody answers."""
        runs, containers = [], []
        with contextlib.suppress(Exception):
            runs = self.runs()
            containers = self.flow_containers()
        return check(self.slots(until), self.ledger.entries(), runs, containers, self._kills)

    def report(self, verdict: Verdict, until: float) -> list[Row]:
        """The table; prints what is broken or redone.

        Each slot counts for the first fault that hit it, and took so long to settle from the last
        time on that this fault hit it, or any that takes services away.
        """
        entries, runs = self.ledger.entries(), self.runs()
        histories: dict[Slot, tuple[list[Entry], list[Run]]] = defaultdict(lambda: ([], []))
        for entry in entries:
            histories[entry.slot][0].append(entry)
        for run in runs:
            histories[run.slot][1].append(run)
        rows = {name: Row(name) for name in ["none", *(i.fault for i in self.injections)]}
        settled: dict[int, float] = {}
        stuck = {run.slot for run in verdict.stuck}
        left_over = {container.run for container in verdict.left_over}
        for injection in self.injections:
            rows[injection.fault].times += injection.times
            rows[injection.fault].errors += [injection.error] if injection.error else []
            if injection.alive is not None:
                rows[injection.fault].alive.append(injection.alive)
        odd = {*verdict.doubled, *verdict.redone, *verdict.early}
        for slot in sorted({*odd, *self.slots(until)}):
            written, taken = histories[slot]
            begin = min([slot.due, *(run.taken for run in taken if run.taken)])
            ends = [entry.at for entry in written if entry.event == "end"]
            # By a clock that was set forward, it may not have ended yet.
            told = [run.ended for run in taken if run.ended and run.ended <= time.time()]
            ended = max([*ends, *told], default=time.time())
            hit = next((i for i in self.injections if i.over >= begin and i.begun <= ended), None)
            row = rows[hit.fault if hit else "none"]
            row.hit += 1
            row.lost += slot in verdict.lost
            row.doubled += slot in verdict.doubled
            row.early += slot in verdict.early
            row.stuck += slot in stuck
            row.left_over += len({run.id for run in taken} & left_over)
            row.redone += slot in verdict.redone
            row.late += slot in verdict.late
            row.unmarked += slot in verdict.unmarked
            if hit:
                # What hits services again begins its settling anew.
                hits = [
                    i
                    for i in self.injections
                    if i.begun <= ended and (i.fault == hit.fault or not FAULTS[i.fault].at_once)
                ]
                over = max(slot.due, *(i.over for i in hits if i.over <= ended), hit.begun)
                settled[id(hit)] = max(settled.get(id(hit), 0), ended - over)
            if slot in {*odd, *verdict.lost, *stuck}:
                rule = "redone" if slot in verdict.redone else "broken"
                say(f"{rule}: {slot.deployment} due {clock(slot.due)}")
                self._tell(hit, written, taken)
        for injection in self.injections:
            if id(injection) in settled:
                rows[injection.fault].settled.append(settled[id(injection)])
        for container in verdict.left_over:
            say(f"left over: {container}")
            rows["none"].left_over += container.run not in {run.id for run in runs}
        return list(rows.values())

    def _tell(self, hit: Injection | None, written: list[Entry], runs: list[Run]) -> None:
        """Prints a slot's whole history."""
        fault = f"{hit.fault}, {clock(hit.begun)} to {clock(hit.over)}" if hit else "no fault"
        print(f"    first hit by {fault}")
        for entry in written:
            print(f"    ledger {clock(entry.at)} {entry.event} {entry.run} {entry.execution[:8]}")
        for run in runs:
            for name, at, message in self.stack.sql(STATES.format(run=run.id)):
                print(f"    run {run.id} {clock(at)} {name} {message[:100]!r}")


# ── The faults ──


@dataclass(frozen=True)
class Fault:
    """How a fault is injected.

    Attributes:
        inject: Brings it, and takes it away.
        instant: Does it take no time?
        at_once: Does it hit single runs, so that several can be hit at the same time?
        quick: Is it one of those that `make test` has?
        gentle: May it come at any time, again and again, as in a soak?
    """

    inject: Callable[[Campaign], None]
    instant: bool = False
    at_once: bool = False
    quick: bool = False
    gentle: bool = True


FAULTS: dict[str, Fault] = {}


def fault(name: str, **options: bool) -> Callable[[Callable[[Campaign], None]], None]:
    """Registers a fault."""

    def register(inject: Callable[[Campaign], None]) -> None:
        FAULTS[name] = Fault(inject, **options)

    return register


@fault("workers killed while idle", instant=True)
def _(c: Campaign) -> None:
    def look() -> bool | None:
        entries = c.ledger.entries()
        begun = {entry.execution for entry in entries if entry.event == "start"}
        return begun == {entry.execution for entry in entries if entry.event == "end"} or None

    with contextlib.suppress(AssertionError):  # one that was killed never ends
        eventually("nothing is running", 10, look)
    c.kill(*c.containers(*WORKERS))


@fault("workers killed between Pending and create", instant=True, quick=True)
def _(c: Campaign) -> None:
    """Each as soon as it has taken a run, which has no container or process then."""
    armed = dict(zip(POOLS, [Armed(*c.containers(service)) for service in WORKERS], strict=True))
    fired: list[Armed] = []
    deadline = time.monotonic() + 45
    with c.stack.database() as database, database.cursor() as cursor:
        database.autocommit = True  # each look at what is there now
        # Those that were taken before, and lost.
        cursor.execute(TAKEN.replace("d.name", "r.id"))
        lost = [f"'{row[0]}'" for row in cursor.fetchall()]
        query = TAKEN + (f"AND r.id NOT IN ({', '.join(lost)})" if lost else "")
        while armed and time.monotonic() < deadline:
            cursor.execute(query)
            for (name,) in cursor.fetchall():
                if name in armed:
                    with c.killing(*{name} & {*WITH_WORKER}):
                        armed[name].fire()
                    fired.append(armed.pop(name))
                    c.begins()
            time.sleep(0.002)
    for shell in [*fired, *armed.values()]:
        shell.close()
    assert not armed, f"no run became Pending in {list(armed)}"


@fault("workers killed mid-run", instant=True, quick=True)
def _(c: Campaign) -> None:
    c.mid_run()
    c.kill(*c.containers(*WORKERS))


@fault("workers killed during a burst of 10", instant=True)
def _(c: Campaign) -> None:
    c.burst()
    c.kill(*c.containers(*WORKERS))


@fault("workers cut off the network")
def _(c: Campaign) -> None:
    found = {service: c.containers(service)[0] for service in WORKERS}
    c.mid_run()
    c.begins()
    for container in found.values():
        docker("network", "disconnect", c.stack.flows_network, container)
    c.lasts()
    for service, container in found.items():
        docker("network", "connect", "--alias", service, c.stack.flows_network, container)


@fault("flow killed", instant=True, at_once=True, quick=True)
def _(c: Campaign) -> None:
    """SIGKILL for a run's container, and for all processes of a forked one."""
    runs = c.mid_run()
    containers = [c.stack.container(run) for run in runs["docker"]]
    processes = [c.process(run) for run in runs["fork"]]
    c.begins()
    docker("kill", *containers)
    for worker, pid in processes:
        docker("exec", worker, "bash", "-c", f"kill -9 -- -{pid}")


@fault("flow and workers killed together", instant=True)
def _(c: Campaign) -> None:
    [run] = c.mid_run()["docker"]
    c.kill(c.stack.container(run), *c.containers(*WORKERS))  # a forked run goes with its worker


@fault("flow out of memory", at_once=True, quick=True)
def _(c: Campaign) -> None:
    small = {"mem_limit": "256m", "memswap_limit": "256m"}
    runs = c.misled(
        {
            "docker": {"how": "eats", "job_variables": small},
            "fork": {"how": "eats", "job_variables": {"memory_limit": 64}},
        }
    )
    c.wrote("start", [slot for slot, _ in runs])


@fault("flow exits while it starts", at_once=True, quick=True)
def _(c: Campaign) -> None:
    options = {"job_variables": {"env": {"LEDGER_EXIT": c.ledger.url}}}
    runs = c.misled(dict.fromkeys(POOLS, options))
    c.wrote("load", [Slot(0, run) for _, run in runs])


@fault("flow hangs beyond its time limit", at_once=True)
def _(c: Campaign) -> None:
    """The flow's own timeout_seconds in a container, time_limit for a forked one."""
    # It counts the start, too, which takes seconds where two stacks share slow cores.
    limit = {"how": "hangs", "job_variables": {"time_limit": 20}}
    runs = c.misled({"limited": {"how": "hangs"}, "fork": limit})
    c.wrote("start", [slot for slot, _ in runs])


@fault("gate killed mid-run", instant=True, quick=True)
def _(c: Campaign) -> None:
    c.mid_run()
    c.kill(*c.containers("gate"))


@fault("gate killed during a burst of 10", instant=True)
def _(c: Campaign) -> None:
    c.burst()
    c.kill(*c.containers("gate"))


@fault("server killed", instant=True)
def _(c: Campaign) -> None:
    c.mid_run()
    c.kill(*c.containers("server"))


@fault("server stopped", quick=True)
def _(c: Campaign) -> None:
    c.begins()
    c.compose("stop", "server")
    c.lasts()
    c.compose("start", "server")


@fault("server restarted during a burst of 10")
def _(c: Campaign) -> None:
    c.burst()
    c.begins()
    c.compose("restart", "server")


@fault("Postgres killed", instant=True, quick=True)
def _(c: Campaign) -> None:
    c.mid_run()
    c.kill(*c.containers("postgres"))


@fault("Postgres stopped")
def _(c: Campaign) -> None:
    c.begins()
    c.compose("stop", "postgres")
    c.lasts()
    c.compose("start", "postgres")


@fault("Postgres restarted")
def _(c: Campaign) -> None:
    c.mid_run()
    c.begins()
    c.compose("restart", "postgres")


@fault("Postgres' disk full, then freed", gentle=False)
def _(c: Campaign) -> None:
    """On the small file system that `small_disk` gave it."""
    disk = database_disk(c.stack)
    assert disk is not None, "expected Postgres on a file system of its own, found the machine's"
    filler = disk / "filler"
    c.begins()
    try:
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(512))
        time.sleep(min(c.outage, 25))
    finally:
        filler.unlink()


@fault("killed before the server heard of its end", quick=True)
def _(c: Campaign) -> None:
    """The flow has done its work, and its process is killed before the server is back."""
    runs = {name: c.add(name, work=15) for name in POOLS}
    slots = [slot for slot, _ in runs.values()]
    c.wrote("start", slots)
    c.compose("stop", "server")
    try:
        c.wrote("end", slots)
        time.sleep(NOTING_SECONDS)
        c.kill(c.stack.container(runs["docker"][1]), *c.containers("fork-worker"))
    finally:
        c.compose("start", "server")


def scale(c: Campaign, workers: int) -> None:
    """Has so many workers in each pool."""
    scales = [text for service in WORKERS for text in ("--scale", f"{service}={workers}")]
    c.compose("up", "--detach", "--wait", "--no-deps", "--no-recreate", *scales, *WORKERS)


@fault("one of two or three workers killed", gentle=False)
def _(c: Campaign) -> None:
    scale(c, 2 + c.repetition % 2)
    try:
        c.mid_run()
        c.kill(*(c.containers(service)[0] for service in WORKERS))
    finally:
        c._wait_for_beat(time.time())
        scale(c, 1)


@fault("a deploy at a slot")
def _(c: Campaign) -> None:
    time.sleep(random.uniform(0, c.interval))
    c.begins()
    c.deploy()


@fault("ten deploys in a row", at_once=True, gentle=False)
def _(c: Campaign) -> None:
    c.injections[-1].times = 10
    for _ in range(10):
        c.deploy()


@fault("make down, make up across a slot", gentle=False)
def _(c: Campaign) -> None:
    c.begins()
    with c.killing("docker"):  # forked runs have time to end
        c.stack.make("down")
    time.sleep(c.interval - time.time() % c.interval + 1)
    c.stack.make("up")


@fault("power cut: all containers killed at once")
def _(c: Campaign) -> None:
    c.mid_run()
    flows = [container.id for container in c.flow_containers() if container.running]
    c.begins()
    with c.killing(*POOLS):
        docker("kill", *flows, *c.containers())
    c.stack.make("up")


@fault("engine restarted", gentle=False)
def _(c: Campaign) -> None:
    c.mid_run()
    c.begins()
    with c.killing("docker"):
        restart_engine(c.stack)


CLOCK = """
FROM {image}
USER root
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends libfaketime
USER 10001:10001
ENV LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1 \
    FAKETIME_TIMESTAMP_FILE=/var/lib/prefect/clock \
    FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1
"""


@fault("server's clock an hour ahead", gentle=False)
def _(c: Campaign) -> None:
    """The wall clock of that container's processes jumps while they run, and back again."""
    image = f"{c.stack.project}-clock:local"
    override = c.stack.folder / "clock.yml"
    text = CLOCK.format(image=f"{c.stack.project}-server:local")
    label = f"com.docker.compose.project={c.stack.project}"  # goes with the stack's own images
    subprocess.run(
        ["docker", "build", "--quiet", "--label", label, "--tag", image, "-"],
        input=text.encode(),
        check=True,
        capture_output=True,
    )
    override.write_text(f"services: {{server: {{image: '{image}'}}}}\n")

    def tell(*command: str) -> None:
        docker("exec", *c.containers("server"), *command)

    clock = "/var/lib/prefect/clock"
    tell("sh", "-c", f"echo +0 >{clock}")  # there from the start: else it is looked for in vain
    try:
        files = ("--file", "docker-compose.yml", "--file", override.name)
        c.compose(*files, "up", "--detach", "--wait", "--no-deps", "server")
        c.begins()
        tell("sh", "-c", f"echo +1h >{clock}")

        def is_ahead() -> bool | None:
            with contextlib.suppress(requests.RequestException):
                url = f"http://127.0.0.1:{c.stack.port}/api/health"
                date = requests.get(url, timeout=10).headers["Date"]
                return parsedate_to_datetime(date).timestamp() > time.time() + 3500 or None
            return None

        eventually("the server an hour ahead", 60, is_ahead)
        time.sleep(2 * c.interval)
        tell("rm", clock)
    finally:
        override.unlink()
        c.compose("up", "--detach", "--wait", "--no-deps", "server")


@fault("upstream down across retries", quick=True)
def _(c: Campaign) -> None:
    c.mid_run()
    c.begins()
    c.ledger.close()
    try:
        time.sleep(max(c.outage / 2, 20))  # longer than one attempt waits
    finally:
        c.ledger.open()


# ── What some need of the machine ──


def strangers(stack: Stack) -> list[str]:
    """The containers on this machine that run and aren't the stack's."""
    own = {*docker("ps", "-q", "--filter", f"network={stack.flows_network}").split()}
    project = f"label=com.docker.compose.project={stack.project}"  # gate and firewall, too
    own |= {*docker("ps", "-q", "--filter", project).split()}
    return [found for found in docker("ps", "-q").split() if found not in own]


def restart_engine(stack: Stack) -> None:
    """Stops the engine, as `setup/engine.sh` started it, and has that start it again."""
    assert not (found := strangers(stack)), f"expected no containers but the test's, found {found}"
    if Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "restart", "docker"], check=True)
    else:
        engine = int(Path("/var/run/docker.pid").read_text())
        os.kill(engine, signal.SIGTERM)
        eventually("the engine's end", 90, lambda: not Path(f"/proc/{engine}").exists() or None)
    stack.make("engine")


def database_disk(stack: Stack) -> Path | None:
    """The file system of its own that the database is on."""
    found = re.search(r"device: (/\S+),", (stack.folder / "docker-compose.yml").read_text())
    return Path(found[1]) if found else None


@contextlib.contextmanager
def small_disk(stack: Stack, folder: Path) -> Iterator[None]:
    """Puts the database of a stack that isn't up yet on a file system of 1 GiB, in memory.

    Mounted on the host, not by the volume: it outlives Postgres and the engine.
    """
    folder.mkdir(parents=True)
    options = "size=1g,mode=700,uid=999,gid=999"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "chaos", str(folder)], check=True)
    file = stack.folder / "docker-compose.yml"
    bound = f"\n  postgres-data: {{driver_opts: {{type: none, device: {folder}, o: bind}}}}\n"
    file.write_text(file.read_text().replace("\n  postgres-data:\n", bound))
    try:
        yield
    finally:
        stack.remove()
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def ledger(folder: Path) -> Iterator[Ledger]:
    """One that containers reach at the host's address on Docker's own bridge."""
    gateway = "{{(index .IPAM.Config 0).Gateway}}"
    address = docker("network", "inspect", "bridge", "--format", gateway).strip()
    found = Ledger(folder / "ledger.jsonl", address)
    try:
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def lane(folder: Path, outage: float, interval: int = 10) -> Iterator[Campaign]:
    """A campaign on a stack of its own, which goes with it."""
    (folder / "project").mkdir(parents=True)
    stack = Stack(folder / "project", f"test-{secrets.token_hex(3)}")
    with small_disk(stack, folder / "disk"), ledger(folder) as found:
        stack.make("up", env=stack.settings)
        yield Campaign(stack, found, outage, interval)

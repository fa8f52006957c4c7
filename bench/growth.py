"""What becomes of ours as deployments and runs grow in number."""

import math
import time
from statistics import median
from uuid import uuid4

import requests

from bench.machine import Machine
from bench.measure import LATE, MIB, RUN_SECONDS
from bench.meter import rates
from bench.problem import Problem
from bench.runs import late
from bench.stacks import DEPLOYMENT, BenchStack, far_schedule

SCHEDULER_SECONDS = 90  # until the server has made the runs of new deployments
# Takes the deployments of `level` back, and makes all that the runs left old enough to go.
AGE = (
    "DELETE FROM flow_run USING deployment WHERE flow_run.deployment_id = deployment.id"
    " AND deployment.name LIKE 'growth-%'",
    "DELETE FROM deployment WHERE name LIKE 'growth-%'",
    "UPDATE flow_run SET end_time = end_time - interval '400 days' WHERE end_time IS NOT NULL",
    "UPDATE events SET occurred = occurred - interval '400 days'",
    "UPDATE event_resources SET occurred = occurred - interval '400 days'",
)
OLD = (
    "SELECT (SELECT count(*) FROM flow_run WHERE end_time < now() - interval '300 days')"
    " + (SELECT count(*) FROM events WHERE occurred < now() - interval '300 days')"
)


def late_with(count: int) -> str:
    """The figure of lateness with so many deployments."""
    return f"lateness, deployments: {count}"


def base(machine: Machine) -> None:
    """Takes the first figures of growth over from what was measured with the one deployment."""
    server = machine.idle[machine.ours.part("server")]
    machine.figures.add(late_with(1), "s", "ours", *machine.figures.of(LATE, "ours"))
    machine.figures.add(idle_with(1), "cores", "ours", server)


def idle_with(count: int) -> str:
    """The figure of the server's idle CPU with so many deployments."""
    return f"idle CPU of the server, deployments: {count}"


def grow(stack: BenchStack, wanted: int) -> None:
    """Brings the stack to so many deployments, each with a schedule, and its runs waiting."""
    model = stack.deployment(DEPLOYMENT)
    have: int = stack.api("POST", "/deployments/count", {})
    taken = ("flow_id", "entrypoint", "work_pool_name", "pull_steps", "parameter_openapi_schema")
    for _ in range(have, wanted):
        schedule = {"schedule": far_schedule(), "active": True}
        body = {key: model[key] for key in taken}
        body |= {"name": f"growth-{uuid4().hex[:8]}", "schedules": [schedule]}
        stack.api("POST", "/deployments/", body)
    waiting = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    deadline = time.monotonic() + SCHEDULER_SECONDS
    while (found := stack.api("POST", "/flow_runs/count", waiting)) < 3 * wanted:
        if time.monotonic() > deadline:
            raise Problem(
                f"{3 * wanted} runs waiting for {wanted} deployments within {SCHEDULER_SECONDS} s",
                f"{found}",
            )
        time.sleep(1)


def level(machine: Machine, count: int) -> None:
    """Lateness, and the server's CPU at idle, with so many deployments."""
    sizes, stack = machine.sizes, machine.ours
    grow(stack, count)
    time.sleep(2)
    before = machine.read()
    time.sleep(sizes.level_idle)
    server = rates(before, machine.read())[stack.part("server")]
    start = math.ceil(time.time()) + machine.lead(stack)
    dues = [float(start + sizes.ours_apart * number) for number in range(sizes.level_late)]
    machine.figures.add(late_with(count), "s", "ours", *late(stack, dues, RUN_SECONDS))
    machine.figures.add(idle_with(count), "cores", "ours", server)
    if count == sizes.levels[-1]:
        many, one = (median(machine.figures.of(late_with(n), "ours")) for n in (count, 1))
        # Runs that begin before their time have no ratio.
        ratio = [many / one] if one > 0 else []
        machine.figures.add(f"lateness, deployments: {count} against 1", "times", "ours", *ratio)


class Size:
    """Database and server memory when the server is warm, and what further runs made of them."""

    def __init__(self, machine: Machine) -> None:
        """Looks at them now."""
        self.machine = machine
        self.before = self._now()

    def _now(self) -> tuple[float, float, int]:
        stack = self.machine.ours
        memory = self.machine.groups.memory(self.machine.watched[stack.part("server")])
        runs = int(stack.sql("SELECT count(*) FROM flow_run WHERE end_time IS NOT NULL")[0][0])
        return stack.database_bytes() / MIB, memory / MIB, runs

    def grown(self) -> None:
        """Adds both sizes; of the database, what has been added in proportion to 1,000 runs."""
        now = self._now()
        figures = self.machine.figures
        growth = (now[0] - self.before[0]) / (now[2] - self.before[2]) * 1000
        figures.add("database growth, 1,000 runs", "MiB", "ours", growth)
        for size, memory, runs in (self.before, now):
            figures.add(f"database, after {runs} runs", "MiB", "ours", size)
            figures.add(f"server memory, after {runs} runs", "MiB", "ours", memory)


def vacuum(machine: Machine) -> str | None:
    """What Prefect's own vacuum leaves of the database; says so if it doesn't come."""
    stack = machine.ours
    for statement in AGE:
        stack.sql(statement)
    stack.compose_do("restart", "server")
    deadline = time.monotonic() + machine.sizes.vacuum
    title = "database, after Prefect's vacuum"
    while stack.sql(OLD)[0][0]:
        if time.monotonic() > deadline:
            machine.figures.add(title, "MiB", "ours")
            return f"no vacuum within {machine.sizes.vacuum} s"
        time.sleep(1)
    ready(stack)
    time.sleep(2)  # logs go right after the runs that they are of
    stack.sql("VACUUM FULL")
    machine.figures.add(title, "MiB", "ours", stack.database_bytes() / MIB)
    return None


def ready(stack: BenchStack, seconds: float = 60) -> None:
    """Waits until the server answers again."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            stack.api("GET", "/ready")
        except requests.RequestException as error:
            if time.monotonic() > deadline:
                raise Problem(f"an answer of the server within {seconds} s", str(error)) from error
            time.sleep(0.5)
        else:
            return

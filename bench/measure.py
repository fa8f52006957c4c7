"""The measurements that compare ours, stock and the floor."""

import json
import math
import time
from pathlib import Path
from uuid import uuid4

from bench.machine import Machine, timed
from bench.meter import rates
from bench.runs import completed, create, drained, ended, late
from bench.stacks import GATE, BenchStack
from gate.policy import RUN_LABEL, Policy, flow_container
from tests.stack import docker

LATE = "lateness, one at a time"
EARLY = "early runs, one at a time"
AD_HOC = "ad hoc, trigger to end"
RUN_SECONDS = 60  # how long any one run may take
MIB = 2**20
# Where each side asks the engine: through the gate, and from inside it.
SOCKETS = {"ours": ("worker", "/run/gate/docker.sock"), "floor": (GATE, "/var/run/docker.sock")}
ASK = Path(__file__).with_name("ask.py").read_text()


def first_start(machine: Machine) -> None:
    """`make up` from nothing but images: ours timed, stock for the others' sake."""
    took: list[float] = []
    with timed(took):
        machine.ours.make("up")
    machine.figures.add("first start, from images", "s", "ours", *took)
    # Not `make up`, which would wait half a minute for the scheduler's next round.
    machine.stock.compose_do("--progress", "quiet", "up", "--detach", "--wait")
    machine.find()


def idle(machine: Machine) -> None:
    """CPU and memory of both stacks while nothing runs."""
    machine.find()
    machine.begun = before = machine.read()
    time.sleep(machine.sizes.idle)
    machine.idle = rates(before, machine.read())
    for stack in (*machine.stacks, machine.fork):
        cores = {name: machine.idle[stack.part(name)] for name in stack.services}
        memory = {
            name: machine.groups.memory(machine.watched[stack.part(name)]) / MIB
            for name in stack.services
        }
        for what, unit, found in (("CPU", "cores", cores), ("memory", "MiB", memory)):
            machine.figures.add(f"idle {what}", unit, stack.side, sum(found.values()))
            for name, value in found.items():
                machine.figures.add(f"idle {what}: {name}", unit, stack.side, value)


def lateness(machine: Machine, stack: BenchStack, with_together: bool) -> None:
    """Scheduled runs one after the other, and at the end many that are due at the same second."""
    sizes, ours = machine.sizes, stack.side != "stock"
    count, apart = {
        "ours": (sizes.ours_late, sizes.ours_apart),
        "fork": (sizes.fork_late, 1),
        "stock": (sizes.stock_late, sizes.stock_apart),
    }[stack.side]
    start = math.ceil(time.time()) + machine.lead(stack)
    # Apart, so that what is alone isn't disturbed: ours loads the ten long before they are due, so
    # they come first; stock takes half a minute over them, so they come last.
    first = start + (10 if ours and with_together else 0)
    dues = [float(first + apart * number) for number in range(count)]
    if with_together:
        dues += [float(start) if ours else dues[-1] + 18] * sizes.together
    found = late(stack, dues, RUN_SECONDS + 6 * sizes.together)
    single, together = found[:count], found[count:]
    machine.figures.add(LATE, "s", stack.side, *single)
    early = sum(value < 0 for value in machine.figures.of(LATE, stack.side))
    machine.figures.put(EARLY, "runs", stack.side, early)
    if together:
        title = f"lateness, {sizes.together} at the same second"
        machine.figures.add(title, "s", stack.side, *together)


def ad_hoc(machine: Machine) -> None:
    """Runs triggered one after the other, the sides taking turns."""
    sizes = machine.sizes
    for _ in range(sizes.groups):
        for stack, count in (
            (machine.ours, sizes.ours_ad_hoc),
            (machine.fork, sizes.ours_ad_hoc),
            (machine.stock, sizes.stock_ad_hoc),
        ):
            for _ in range(count):
                triggered = time.time()
                run = completed(stack, [create(stack)], RUN_SECONDS, every=0.3)[0]
                machine.figures.add(AD_HOC, "s", stack.side, ended(run) - triggered)
                drained(stack)
        walls: list[float] = []
        for _ in range(sizes.floor_ad_hoc):
            with timed(walls):
                machine.bare()
        machine.figures.add(AD_HOC, "s", "floor", *walls)


def asking(machine: Machine) -> None:
    """What a call of the engine's takes, through the gate and without it; in turns."""
    ours, sizes = machine.ours, machine.sizes
    body = {"Image": ours.image, "Cmd": ["true"], "Labels": {RUN_LABEL: str(uuid4())}}
    rules = Policy(
        images=(ours.image,),
        volumes=(),
        labels=(),
        network=ours.flows_network,
        max_memory=1 << 30,
        cpus=2,
    )
    bodies = {"ours": body, "floor": flow_container(body, rules)}
    for _ in range(sizes.asking):
        for side, (service, socket) in SOCKETS.items():
            text = json.dumps(bodies[side])
            container = ours.compose_container(service)
            found = docker("exec", container, "python", "-c", ASK, socket, text)
            asked, made = json.loads(found)
            machine.figures.add("question to the engine", "ms", side, *asked)
            machine.figures.add("container made by the engine", "ms", side, *made)


def burst(machine: Machine, stack: BenchStack, count: int) -> None:
    """Runs triggered all at once: how long until all are completed, and what they cost."""
    before = machine.read()
    triggered = time.time()
    ids = [create(stack) for _ in range(count)]
    found = completed(stack, ids, RUN_SECONDS + 8 * count)
    drained(stack)
    time.sleep(3)  # what is written behind the last container's back
    parts = machine.parts(before, machine.read(), stack.side)
    wall = max(map(ended, found)) - triggered
    machine.figures.add(f"burst of {count}", "s", stack.side, wall)
    machine.figures.add(f"burst of {count}, rate", "runs/min", stack.side, count / wall * 60)
    add_cost(machine, stack.side, count, parts)


def floor_burst(machine: Machine) -> None:
    """What as many bare containers cost, one after the other."""
    count = machine.sizes.burst
    before = machine.read()
    for _ in range(count):
        machine.bare()
    time.sleep(3)
    add_cost(machine, "floor", count, machine.parts(before, machine.read(), "floor"))


def cost(count: int, part: str = "") -> str:
    """The figure of CPU time a run in a burst, of one part or all."""
    return f"burst of {count}, CPU a run" + (f": {part}" if part else "")


def add_cost(machine: Machine, side: str, count: int, parts: dict[str, float]) -> None:
    """Adds CPU time a run, all and by part."""
    unit = "core-s"
    machine.figures.add(cost(count), unit, side, sum(parts.values()) / count)
    for name, seconds in parts.items():
        machine.figures.add(cost(count, name), unit, side, seconds / count)


def start(machine: Machine, stack: BenchStack) -> None:
    """`make up` of a stack whose containers were stopped."""
    stack.compose_do("stop")
    took: list[float] = []
    with timed(took):
        stack.make("up")
    machine.figures.add("start, when stopped", "s", stack.side, *took)
    machine.find()

"""The two stacks that are compared: copies of the project that have the bench's flow deployed."""

import copy
import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from bench import stock
from bench.meter import FLOWS, Cgroups, Part, group_of
from bench.problem import Problem
from tests.stack import PROJECT, Stack, docker, left_behind

DEPLOYMENT = "bench-get/bench"
FORKED = "bench-get/forked"
SERVICES = ("worker", "server", "postgres", "upstream")
GATE = "gate"
FORK_WORKER = "fork-worker"
TEMPLATE = "worker/base-job-template.json"
RUNS = "label=io.prefect.flow-run-id"
HOUR = 3600
PREFECT_PREFETCH = 10.0  # seconds: the default


def far_schedule() -> dict[str, Any]:
    """A schedule that keeps three runs waiting, none of which comes due within a bench."""
    anchor = datetime.now(UTC) + timedelta(hours=3)
    return {"interval": 6 * HOUR, "anchor_date": anchor.strftime("%Y-%m-%dT%H:%M:%S+00:00")}


def prefetch_in(words: list[str]) -> float:
    """Finds the prefetch in seconds among a worker's arguments and, as --KEY=value, variables."""
    text = " ".join(words)
    # An argument wins over a variable.
    for name in ("--prefetch-seconds[ =]", "--PREFECT_WORKER_PREFETCH_SECONDS="):
        if found := re.search(rf"{name}(\d+(\.\d+)?)", text):
            return float(found[1])
    return PREFECT_PREFETCH


def group_name(owner: str) -> str:
    """A parent group for containers, as the engine's cgroup driver wants it."""
    driver = docker("info", "--format", "{{.CgroupDriver}}").strip()
    name = owner.replace("-", "")  # to systemd a dash is a level
    return f"{name}.slice" if driver == "systemd" else f"/{name}"


def hold(groups: Cgroups, image: str, group: str, name: str) -> PurePosixPath:
    """Starts a container that does nothing in a group, which so lasts; returns the group's path."""
    docker(
        *f"run --detach --init --name {name} --network none --cgroup-parent {group}".split(),
        *("--entrypoint", "sleep", image, "infinity"),
    )
    pid = int(docker("inspect", "--format", "{{.State.Pid}}", name))
    return group_of(groups, pid).parent


class BenchStack(Stack):
    """One of the two: ours, as `make up` brings it, or stock."""

    def __init__(self, folder: Path, side: str, token: str) -> None:
        """Copies the project and makes it what the bench needs.

        Args:
            folder: Where to; has to be empty.
            side: ``ours`` or ``stock``.
            token: Sets the project's name apart from another bench's.
        """
        self.side = side
        super().__init__(folder, f"bench-{side}-{token}")
        self.group = group_name(self.project)
        self.deployment_name = DEPLOYMENT
        # The first one is the worker.
        self.services: tuple[str, ...] = SERVICES if side == "stock" else (*SERVICES, GATE)
        self.settings["FLOW_CGROUP_PARENT"] = self.group
        self._deployment_id = ""
        shutil.copy(PROJECT / "bench" / "bench_get.py", folder / "flows")
        project = yaml.safe_load((folder / "prefect.yaml").read_text())
        entry = {
            "name": DEPLOYMENT.split("/")[1],
            "entrypoint": "flows/bench_get.py:bench_get",
            "schedules": [{**far_schedule(), "slug": "far"}],
            "work_pool": {"name": "docker-pool"},
        }
        entries = [entry]
        if side == "ours":
            pool = {"name": "fork-pool"}
            entries.append({**entry, "name": FORKED.split("/")[1], "work_pool": pool})
        project = {"pull": project.get("pull"), "deployments": entries}
        (folder / "prefect.yaml").write_text(yaml.safe_dump(project))
        template = json.loads((folder / TEMPLATE).read_text())
        if side == "stock":
            compose = yaml.safe_load((folder / "docker-compose.yml").read_text())
            (folder / "stock.yml").write_text(stock.override(compose))
            self.settings["COMPOSE_FILE"] = "docker-compose.yml:stock.yml"
            template = stock.template(template)
            template["job_configuration"]["container_create_kwargs"]["cgroup_parent"] = self.group
        (folder / TEMPLATE).write_text(json.dumps(template, indent=2))

    def forked(self) -> "BenchStack":
        """The same stack as the side ``fork``: its runs are in the fork pool."""
        fork = copy.copy(self)
        fork.side, fork.deployment_name, fork.services = "fork", FORKED, (FORK_WORKER,)
        fork._deployment_id = ""
        return fork

    @property
    def image(self) -> str:
        """The flow image."""
        return f"{self.project}-flow:local"

    @property
    def deployment_id(self) -> str:
        """The id of the one deployment."""
        self._deployment_id = self._deployment_id or str(
            self.deployment(self.deployment_name)["id"]
        )
        return self._deployment_id

    def parts(self, groups: Cgroups) -> dict[Part, PurePosixPath]:
        """The control groups of the services, as they run now."""
        found = {}
        for service in self.services:
            name = self.compose_container(service)
            pid = int(docker("inspect", "--format", "{{.State.Pid}}", name))
            found[self.side, service] = group_of(groups, pid)
        return found

    def compose_container(self, service: str) -> str:
        """The id of a service's container."""
        listed = docker("compose", "--project-name", self.project, "ps", "--quiet", service).strip()
        if not listed:
            raise Problem(f"a running {service} in {self.project}", "none")
        return listed

    def compose_do(self, *command: str) -> None:
        """A command of Compose's, which has to go well."""
        done = self.run("docker", "compose", *command)
        if done.returncode:
            raise Problem(f"docker compose {' '.join(command)} to end well", done.stdout.strip())

    def prefetch(self) -> float:
        """How many seconds ahead of their time the worker takes runs, as it was told to."""
        worker = self.compose_container(self.services[0])
        config = json.loads(docker("inspect", "--format", "{{json .Config}}", worker))
        words = [*config["Cmd"], *(f"--{entry}" for entry in config["Env"])]
        return prefetch_in(words)

    def part(self, name: str = FLOWS) -> Part:
        """A part of this stack, as the meter names it."""
        return (self.side, name)

    def flow_containers(self) -> list[str]:
        """Flow containers that are still to go: stock keeps the ended ones, ours doesn't."""
        every = ["--all"] if self.side == "ours" else []
        network = f"network={self.flows_network}"
        return docker("ps", *every, "--quiet", "--filter", RUNS, "--filter", network).split()

    def database_bytes(self) -> int:
        """The size of the database on disk."""
        return int(self.sql("SELECT pg_database_size('prefect')")[0][0])

    def remove_all(self) -> list[str]:
        """Removes the stack with its containers and images; returns what is left all the same."""
        self.remove()
        network = f"network={self.flows_network}"
        if ended := docker("ps", "--all", "--quiet", "--filter", network).split():
            docker("rm", "--force", *ended)
        return left_behind(self.project)

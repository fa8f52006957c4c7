"""A stack for tests: a copy of the project, its own Compose project name and ports."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import psycopg2
import requests
from psycopg2.extensions import connection
from testcontainers.compose import DockerCompose

PROJECT = Path(__file__).parent.parent
EVIDENCE = PROJECT / "test-evidence"
DAILY = "suggest-activity/daily"
ACTIVITY_URL = "http://upstream:8000/api/activity"  # as flow containers see it
T = TypeVar("T")
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def settings_of(path: Path) -> dict[str, str]:
    """The KEY=value lines of an .env file."""
    lines = path.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line[:1].isalpha())


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def docker(*args: str) -> str:
    """What a docker command prints."""
    return subprocess.run(["docker", *args], check=True, capture_output=True, text=True).stdout


def left_behind(project: str) -> list[str]:
    """Whatever of a Compose project still exists, flow runs' containers included."""
    label = f"label=com.docker.compose.project={project}"
    return [
        *docker("ps", "--all", "--filter", label, "--format", "{{.Names}}").split(),
        *docker(
            "ps", "--all", "--filter", f"network={project}_flows", "--format", "{{.Names}}"
        ).split(),
        *docker("volume", "ls", "--filter", label, "--format", "{{.Name}}").split(),
        *docker("network", "ls", "--filter", label, "--format", "{{.Name}}").split(),
        *docker("image", "ls", "--filter", label, "--format", "{{.Repository}}").split(),
    ]


def bystanders() -> dict[str, str]:
    """Every container that isn't a test's, with the time since when it runs."""
    ids = docker("ps", "--quiet", "--no-trunc").split()
    if not ids:
        return {}
    rows = docker(
        "inspect", "--format", "{{.Name}} {{.Id}} {{.State.StartedAt}}", *ids
    ).splitlines()
    # Flow runs of a user's stack come and go by themselves; its services don't.
    return {row.split()[1]: row for row in rows if "-1 " in row and not row.startswith("/test-")}


def eventually(what: str, seconds: float, look: Callable[[], T | None]) -> T:
    """Looks every half second until there is something to see; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        if (found := look()) is not None:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.5)


class Stack:
    """A copy of the project in a folder, and the stack that runs from it."""

    def __init__(self, folder: Path, project: str) -> None:
        """Copies what git would: tracked and new files, none that are ignored."""
        self.folder = folder
        self.project = project
        self.port = free_port()
        self._csrf: dict[str, str] | None = None
        self.settings = {
            "COMPOSE_PROJECT_NAME": project,
            "PREFECT_PORT": str(self.port),
            "UPSTREAM_PORT": str(free_port()),
        }
        # testcontainers' own support, on the very file that users get.
        self.compose = DockerCompose(
            folder, compose_file_name="docker-compose.yml", env_file=".env"
        )
        files = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=PROJECT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        for name in files:
            if (PROJECT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(PROJECT / name, folder / name)

    @property
    def login(self) -> str:
        """``user:password``."""
        return settings_of(self.folder / ".env")["PREFECT_API_AUTH_STRING"]

    @property
    def flows_network(self) -> str:
        """The network that flow containers are on."""
        return f"{self.project}_flows"

    def run(
        self, *command: str, env: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a command in the project's folder; standard output and error together."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | (env or {}),
            timeout=400,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def make(self, *args: str, code: int = 0, env: dict[str, str] | None = None) -> str:
        """`make …`, which has to end with this exit code (make's own is 2 for any failure)."""
        done = self.run("make", *args, env=env)
        assert done.returncode == code, f"make {' '.join(args)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """A request to the server, as from this machine; `options` are those of requests."""
        return requests.request(
            method, f"http://127.0.0.1:{self.port}{path}", timeout=30, **options
        )

    def api(self, method: str, path: str, json: Any = None) -> Any:
        """A call to the server's API, as from this machine; JSON in, JSON out."""
        if method != "GET" and self._csrf is None:
            self._csrf = self._csrf_headers()
        response = self._request(method, path, json)
        # Its token is an hour old, or of a database that another one has taken the place of.
        if response.status_code == 403:
            self._csrf = self._csrf_headers()
            response = self._request(method, path, json)
        response.raise_for_status()
        return response.json() if response.content else None

    def _csrf_headers(self) -> dict[str, str]:
        """What a request that changes something has to carry; nothing where the server is stock."""
        client = str(uuid.uuid4())
        response = self._request("GET", f"/csrf-token?client={client}")
        if response.status_code == 422:
            return {}
        response.raise_for_status()
        return {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": response.json()["token"]}

    def _request(self, method: str, path: str, json: Any = None) -> requests.Response:
        user, password = self.login.split(":", 1)
        options = {"json": json, "auth": (user, password), "headers": self._csrf}
        return self.ask(method, f"/api{path}", **options)

    @contextlib.contextmanager
    def database(self) -> Iterator[connection]:
        """A connection to the stack's Postgres, by its container's address: it has no port here."""
        container = docker(
            "compose", "--project-name", self.project, "ps", "--quiet", "postgres"
        ).strip()
        networks = json.loads(
            docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", container)
        )
        password = settings_of(self.folder / ".env")["POSTGRES_PASSWORD"]
        opened = psycopg2.connect(
            host=networks[f"{self.project}_backend"]["IPAddress"],
            dbname="prefect",
            user="prefect",
            password=password,
            connect_timeout=10,
        )
        with contextlib.closing(opened):
            yield opened

    def let_reach(self, ports: str) -> None:
        """Sets HOST_PORTS: what containers may reach of this machine."""
        path = self.folder / ".env"
        path.write_text(re.sub(r"(?m)^HOST_PORTS=.*$", f"HOST_PORTS={ports}", path.read_text()))
        command = ("docker", "compose", "--progress", "quiet", "up", "--detach", "--wait")
        done = self.run(*command, "--no-deps", "firewall")
        assert done.returncode == 0, done.stdout

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """A statement for the stack's Postgres.

        Returns:
            The rows, none for a statement that has none; it is committed.
        """
        with self.database() as database, database.cursor() as cursor:
            database.autocommit = True  # VACUUM runs in no transaction
            cursor.execute(query)
            return cursor.fetchall() if cursor.description else []

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment by its full name."""
        found: dict[str, Any] = self.api("GET", f"/deployments/name/{name}")
        return found

    def runs(self, name: str) -> list[dict[str, Any]]:
        """A deployment's runs that began, the newest first."""
        deployment_id = self.deployment(name)["id"]
        found: list[dict[str, Any]] = self.api(
            "POST",
            "/flow_runs/filter",
            {
                "deployments": {"id": {"any_": [deployment_id]}},
                "flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}},
                "sort": "START_TIME_DESC",
            },
        )
        return found

    def start(
        self,
        name: str,
        job_variables: dict[str, Any] | None = None,
        at: datetime | None = None,
        **parameters: Any,
    ) -> str:
        """Starts a run, or has it wait for a time; returns its id."""
        deployment_id = self.deployment(name)["id"]
        details = {"scheduled_time": at.isoformat()} if at else {}
        body = {
            "parameters": parameters,
            "job_variables": job_variables,
            "state": {"type": "SCHEDULED", "state_details": details},
        }
        return str(self.api("POST", f"/deployments/{deployment_id}/create_flow_run", body)["id"])

    def container(self, run_id: str, seconds: float = 60) -> str:
        """The id of a flow run's container, as soon as it runs."""
        label = f"label=io.prefect.flow-run-id={run_id}"
        return eventually(
            f"a container of flow run {run_id}",
            seconds,
            lambda: docker("ps", "--quiet", "--filter", label).strip() or None,
        )

    def running(self, run_id: str, seconds: float = 60) -> None:
        """Waits until a flow run is Running."""
        eventually(
            f"flow run {run_id} running",
            seconds,
            lambda: self.api("GET", f"/flow_runs/{run_id}")["state_type"] == "RUNNING" or None,
        )

    def gone(self, run_id: str) -> bool:
        """Is there no container of the flow run, not even an ended one?"""
        label = f"label=io.prefect.flow-run-id={run_id}"
        return not docker("ps", "--all", "--quiet", "--filter", label)

    def cleared(self, run_id: str, seconds: float = 30) -> None:
        """Waits until the flow run's container is gone."""
        eventually(f"container of {run_id} gone", seconds, lambda: self.gone(run_id) or None)

    def finished(self, run_id: str, seconds: float = 180) -> dict[str, Any]:
        """The flow run, as soon as it is in a final state."""

        def look() -> dict[str, Any] | None:
            run: dict[str, Any] = self.api("GET", f"/flow_runs/{run_id}")
            return run if run["state_type"] in FINAL else None

        return eventually(f"a final state of flow run {run_id}", seconds, look)

    def said(self, run_id: str, text: str, seconds: float = 30) -> None:
        """Waits until a flow run's log has a text: the last lines arrive after the final state."""
        eventually(
            f"{text!r} in the log of flow run {run_id}",
            seconds,
            lambda: text in self.logs(run_id) or None,
        )

    def attempts(self, run_id: str, tasks: dict[str, int], seconds: float = 30) -> None:
        """Waits until these tasks of a flow run were tried so often; recorded as events come in."""

        def look() -> bool | None:
            of_run = {"flow_runs": {"id": {"any_": [run_id]}}}
            found = self.api("POST", "/task_runs/filter", of_run)
            counts = {task["name"].rsplit("-", 1)[0]: task["run_count"] for task in found}
            return tasks.items() <= counts.items() or None

        eventually(f"{tasks} attempts in flow run {run_id}", seconds, look)

    def logs(self, run_id: str) -> str:
        """A flow run's log lines so far."""
        body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return "\n".join(line["message"] for line in self.api("POST", "/logs/filter", body))

    def leave_evidence(self, folder: Path) -> None:
        """Writes service logs, `compose ps` and the last runs with states and logs to a folder."""
        folder.mkdir(parents=True)
        for name in ("ps --all", "logs --timestamps", "config --no-interpolate", "version"):
            output = self.run("docker", "compose", "--ansi", "never", *name.split()).stdout
            (folder / f"{name.split()[0]}.txt").write_text(output)
        try:
            due = {"expected_start_time": {"before_": datetime.now(UTC).isoformat()}}
            asked = {"flow_runs": due, "sort": "EXPECTED_START_TIME_DESC", "limit": 10}
            runs = self.api("POST", "/flow_runs/filter", asked)
            for run in runs:
                run["states"] = self.api("GET", f"/flow_run_states/?flow_run_id={run['id']}")
                run["logs"] = self.logs(run["id"]).splitlines()
            (folder / "runs.json").write_text(json.dumps(runs, indent=2))
        except requests.RequestException as error:
            (folder / "runs.json").write_text(f"no answer from the server: {error}")

    def remove(self) -> None:
        """Removes whatever is left of the stack, however it came to be."""
        if (self.folder / ".env").exists():
            self.run("make", "destroy", env={"YES": "1"})

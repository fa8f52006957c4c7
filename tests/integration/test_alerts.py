"""Failures reach a person: a real HTTP receiver on the flows' network stands for theirs."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from testcontainers.core.container import DockerContainer

from tests.stack import Stack, docker, eventually

USERS_ETL = "users-etl/hourly"
FACT = "cat-fact/on-demand"
ALWAYS = "http://upstream:8000/api/users?fault_status=500"
pytestmark = pytest.mark.timeout(900)
AUTOMATIONS = ["Alert: failed or crashed run", "Alert: late run"]
SLACK = "hooks.slack.com"  # a name of the receiver's on that network


class Receiver:
    """The receiver, by its container's id."""

    def __init__(self, container: str) -> None:
        """Takes a container that runs."""
        self.container = container

    def got(self) -> list[dict[str, str]]:
        """Every message so far."""
        return [json.loads(line) for line in docker("logs", self.container).splitlines()]

    def told_of(self, run: str, state: str) -> dict[str, str]:
        """The message about a run's state, of which there has to be one within a minute."""
        found = eventually(f"{state} {run}", 60, lambda: self.about(run, state) or None)
        return found[0]

    def about(self, run: str, state: str) -> list[dict[str, str]]:
        """The messages about a run's state so far."""
        return [
            message
            for message in self.got()
            if run in message["text"] and f" {state}, run " in message["text"]
        ]


@pytest.fixture
def receiver(stack: Stack, first_run: dict[str, Any]) -> Iterator[Receiver]:
    source = Path(__file__).with_name("receiver.py").read_text()
    container = DockerContainer(f"{stack.project}-flow:local").with_command(
        ["python", "-c", source]
    )
    with container:
        identity = container.get_wrapped_container().id or ""
        aliases = ("--alias", "alerts", "--alias", SLACK)
        docker("network", "connect", *aliases, stack.flows_network, identity)
        yield Receiver(identity)


@pytest.fixture
def env(stack: Stack) -> Iterator[Path]:
    """The stack's .env, put back afterwards."""
    path = stack.folder / ".env"
    original = path.read_text()
    yield path
    path.write_text(original)
    stack.make("deploy")
    assert automations(stack) == []


@pytest.fixture
def nobodys(stack: Stack, first_run: dict[str, Any]) -> Iterator[str]:
    """A deployment without a work pool, whose runs nobody begins."""
    flow = stack.deployment(FACT)["flow_id"]
    body = {"name": "nobodys", "flow_id": flow}
    created = stack.api("POST", "/deployments/", body)["id"]
    yield "cat-fact/nobodys"
    of_it = {"deployments": {"id": {"any_": [created]}}}
    for run in stack.api("POST", "/flow_runs/filter", of_it):
        stack.api("DELETE", f"/flow_runs/{run['id']}")
    stack.api("DELETE", f"/deployments/{created}")


def automations(stack: Stack) -> list[str]:
    return sorted(item["name"] for item in stack.api("POST", "/automations/filter", {}))


def send_to(stack: Stack, env: Path, url: str) -> None:
    lines = env.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("ALERT_WEBHOOK_URL=")]
    env.write_text("\n".join([*kept, f"ALERT_WEBHOOK_URL={url}", ""]))
    stack.make("deploy")
    assert automations(stack) == AUTOMATIONS


def without_database(stack: Stack) -> None:
    """For longer than the server takes to notice; what changes afterwards has to reach it still."""
    stack.run("docker", "compose", "stop", "postgres")
    time.sleep(20)
    stack.run("docker", "compose", "start", "postgres")

    def ready() -> Any:
        with contextlib.suppress(requests.RequestException):
            return stack.api("GET", "/ready")

    eventually("a server that is ready", 60, ready)


def test_who_is_told_of_what(
    stack: Stack, receiver: Receiver, env: Path, nobodys: str, tmp_path: Path
) -> None:
    """Failed, crashed and late runs, once each; as Slack wants it; nobody waits for a webhook."""
    assert automations(stack) == []
    send_to(stack, env, "http://alerts:8000/json")
    stack.make("deploy")
    assert automations(stack) == AUTOMATIONS, "updated in place, not doubled"

    late = stack.start(nobodys)
    failed = stack.start(USERS_ETL, url=ALWAYS, path="never", retry_delay_seconds=0)
    crashed = stack.start(
        FACT, {"time_limit": 5}, url="http://upstream:8000/api/fact?fault_delay=60"
    )
    assert stack.finished(crashed)["state_type"] == "CRASHED"
    assert stack.finished(failed)["state_type"] == "FAILED"
    stack.attempts(failed, {"extract": 11})
    stack.make("data", env={"TO": str(tmp_path)})
    assert not (tmp_path / "never").exists(), "no half of a file"

    told = receiver.told_of(failed, "Failed")
    assert told["text"].startswith("users-etl/hourly Failed, run ")
    assert "500 Server Error" in told["message"]
    assert (told["flow"], told["state_type"]) == ("users-etl", "FAILED")
    assert told["url"].endswith(f"/flow-run/{failed}")
    told = receiver.told_of(late, "Late")
    assert (told["state"], told["deployment"]) == ("Late", "nobodys")
    assert receiver.told_of(crashed, "Crashed")["state"] == "Crashed"
    assert len(receiver.about(failed, "Failed")) == len(receiver.about(crashed, "Crashed")) == 1

    without_database(stack)
    send_to(stack, env, f"http://{SLACK}:8000/slow")
    refused = "http://upstream:8000/api/fact?fault_status=404"
    runs = [stack.start(FACT, url=refused) for _ in range(2)]
    for run in runs:
        assert stack.finished(run)["state_type"] == "FAILED"
        told = receiver.told_of(run, "Failed")
        assert told.keys() == {"text"}
        assert told["text"].startswith("cat-fact/on-demand Failed, run ")

    send_to(stack, env, "http://alerts:1/nobody-there")
    run = stack.start(FACT, url=refused)
    assert stack.finished(run)["state_type"] == "FAILED"
    assert stack.finished(stack.start(FACT))["state_type"] == "COMPLETED"

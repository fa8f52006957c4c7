"""status.py: what it takes for wrong."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from ops.status import parse_containers, poll_problems, rough, service_problems

NOW = datetime(2026, 11, 22, 9, tzinfo=UTC)


def container(
    service: str, state: str = "running", health: str = "healthy", code: int = 0
) -> dict[str, object]:
    return {
        "Service": service,
        "State": state,
        "Health": health,
        "ExitCode": code,
        "Status": f"{state} ({code})",
    }


def test_both_formats_of_compose_are_read() -> None:
    rows = [container("server"), container("worker")]
    lines = "\n".join(map(json.dumps, rows))
    assert parse_containers(lines) == parse_containers(json.dumps(rows))
    assert parse_containers(lines).keys() == {"server", "worker"}
    assert parse_containers("") == {}


def test_of_several_containers_of_a_service_the_worst_counts() -> None:
    rows = [container("fork-worker", "exited", "", 137), container("fork-worker")]
    for given in (rows, rows[::-1]):
        found = parse_containers(json.dumps(given))
        assert "fork-worker: is exited" in service_problems(["fork-worker"], found)[0]


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (container("worker"), None),
        (container("worker", health="starting"), "worker: is starting"),
        (container("worker", health="unhealthy"), "worker: is unhealthy"),
        (container("worker", "exited", "", 137), "worker: is exited"),
        (container("deploy", "exited", ""), None),
        (container("deploy", "exited", "", 1), "deploy: exited (1)"),
        (container("deploy", "running", ""), "deploy: running"),
    ],
)
def test_services(found: dict[str, object], problem: str | None) -> None:
    name = str(found["Service"])
    problems = service_problems([name], {name: found})
    assert bool(problems) == bool(problem)
    assert not problem or problems[0].startswith(problem)


def test_a_service_without_a_container_is_missed() -> None:
    assert "worker: has no container" in service_problems(["worker"], {})[0]


def test_polling() -> None:
    worker = "fork-worker", "fork-pool"
    assert poll_problems(*worker, NOW - timedelta(seconds=10), NOW) == []
    assert "last polled 2 min ago" in poll_problems(*worker, NOW - timedelta(seconds=125), NOW)[0]
    assert "never polled the work pool fork-pool" in poll_problems(*worker, None, NOW)[0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200000, "2 d")],
)
def test_rough(seconds: float, words: str) -> None:
    assert rough(timedelta(seconds=seconds)) == words

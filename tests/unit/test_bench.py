"""The bench: what it reads from control groups, and what it makes of it."""

from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from bench.figures import Figures, summary
from bench.meter import (
    BENCH,
    CHILDREN,
    ENGINE,
    FLOWS,
    MACHINE,
    Cgroups,
    Part,
    Reading,
    by_part,
    rates,
    work,
)
from bench.problem import Problem
from bench.stock import override, template, tuned

BOX = PurePosixPath("/docker/box")
TABLES = {
    1: "9:name=systemd:/docker/box\n4:memory:/docker/box\n2:cpu,cpuacct:/docker/box\n0::/\n",
    2: "0::/docker/box\n",
}


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture
def groups(version: int, tmp_path: Path) -> Cgroups:
    """A container's groups, 2.5 s of CPU and 100 bytes of memory in them, 30 of those cache."""
    files = {
        1: {
            "cpuacct/docker/box/cpuacct.usage": "2500000000\n",
            "memory/docker/box/memory.usage_in_bytes": "100\n",
            "memory/docker/box/memory.stat": "inactive_file 7\ntotal_inactive_file 30\n",
        },
        2: {
            "cgroup.controllers": "cpu memory\n",
            "docker/box/cpu.stat": "usage_usec 2500000\nuser_usec 2000000\n",
            "docker/box/memory.current": "100\n",
            "docker/box/memory.stat": "anon 60\ninactive_file 30\n",
        },
    }
    for name, text in files[version].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return Cgroups(tmp_path)


def test_both_versions_of_control_groups_are_read(groups: Cgroups, version: int) -> None:
    assert groups.path(TABLES[version]) == BOX
    assert groups.cpu(BOX) == 2.5
    assert groups.memory(BOX) == 70


def test_a_group_that_is_not_there_is_a_problem(groups: Cgroups) -> None:
    with pytest.raises(Problem, match="expected: cpu"):
        groups.cpu(PurePosixPath("/docker/other"))
    with pytest.raises(Problem, match="found:    none at all"):
        groups.path("")


def test_an_empty_group_is_removed(groups: Cgroups, version: int, tmp_path: Path) -> None:
    mounts = [tmp_path / name for name in ("cpuacct", "memory")] if version == 1 else [tmp_path]
    for mount in mounts:
        (mount / "bench").mkdir()
    groups.remove(PurePosixPath("/bench"))
    assert not any((mount / "bench").exists() for mount in mounts)
    groups.remove(BOX)
    assert groups.cpu(BOX) == 2.5


def test_parts_and_engine_come_to_the_whole_less_idle() -> None:
    flows: Part = ("ours", FLOWS)
    server: Part = ("ours", "server")
    other: Part = ("stock", "server")
    new: Part = ("other", "came-later")
    cpu = {MACHINE: 100.0, BENCH: 1.0, CHILDREN: 2.0, flows: 10.0, server: 20.0, other: 30.0}
    before = Reading(0, cpu)
    still = Reading(10, cpu | {MACHINE: 102.0, server: 20.5, other: 30.5})
    after = Reading(
        20,
        {
            MACHINE: 124.0,
            BENCH: 1.5,
            CHILDREN: 2.5,
            flows: 20.0,
            server: 23.0,
            other: 31.0,
            new: 9.0,
        },
    )
    idle = rates(before, still)
    assert idle[MACHINE] == pytest.approx(0.2)
    done = work(still, after, idle)
    found = by_part(done, [flows, server], set())
    assert found == pytest.approx({FLOWS: 10, "server": 2, ENGINE: 20 - 10 - 2 - 0.5 - 0.5})
    with_children = by_part(done, [flows, server], {CHILDREN})
    assert with_children[ENGINE] == pytest.approx(found[ENGINE] + 0.5)


def test_a_summary_of_one_and_of_many() -> None:
    assert summary([2.0]) == {"n": 1, "min": 2, "median": 2, "p95": 2, "max": 2}
    hundred = summary([float(number) for number in range(101)])
    assert hundred == {"n": 101, "min": 0, "median": 50, "p95": 95, "max": 100}


def test_a_side_without_samples_is_null() -> None:
    figures = Figures()
    figures.add("start", "s", "ours", 1.0, 3.0)
    figures.add("vacuum", "MiB", "ours")
    start, vacuum = figures.rows()
    assert start["stock"] is start["floor"] is vacuum["ours"] is None
    assert start["ours"] == summary([1.0, 3.0])
    assert figures.of("start", "ours") == [1, 3]


def test_stock_keeps_connections_and_loses_what_is_tuned() -> None:
    environment = {
        "PREFECT_API_URL": "x",
        "PREFECT_API_AUTH_STRING_FILE": "x",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "x",
        "PREFECT_SERVER_DATABASE_PASSWORD_FILE": "x",
        "PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE": "x",
        "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "x",
        "PREFECT_WORKER_QUERY_SECONDS": "x",
        "MALLOC_ARENA_MAX": "x",
    }
    gone = tuned(environment)
    assert gone == [
        "MALLOC_ARENA_MAX",
        "PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE",
        "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS",
        "PREFECT_WORKER_QUERY_SECONDS",
    ]
    services: dict[str, Any] = {"server": {"environment": environment}, "worker": {}}
    text = override({"services": {**services, "postgres": {}}})
    assert all(f"      {key}: !reset null\n" in text for key in gone)
    assert text.count("!reset") == len(gone) + 1  # and Postgres' command


def test_the_project_s_own_files_can_be_made_stock() -> None:
    project = Path(__file__).parent.parent.parent
    compose = yaml.safe_load((project / "docker-compose.yml").read_text())
    assert "PREFECT_WORKER_PREFETCH_SECONDS: !reset null" in override(compose)
    for name in ("server", "worker"):
        assert "PREFECT_API_URL" not in tuned(compose["services"][name]["environment"])


def test_stock_s_runs_go_prefect_s_own_way() -> None:
    ours: dict[str, Any] = {
        "job_configuration": {"command": "short", "container_create_kwargs": {"init": True}},
        "variables": {
            "properties": {
                "command": {"default": "short"},
                "env": {"default": {"PREFECT_LOGGING_LEVEL": "x", "USERS_API_URL": "x"}},
            }
        },
    }
    stock = template(ours)
    configuration = stock["job_configuration"]
    assert configuration["command"] == "{{ command }}"
    assert configuration["container_create_kwargs"] == {
        "init": True,
        "entrypoint": ["entrypoint.sh"],
    }
    assert stock["variables"]["properties"]["command"]["default"] is None
    assert stock["variables"]["properties"]["env"]["default"] == {"USERS_API_URL": "x"}
    assert "entrypoint" not in ours["job_configuration"]["container_create_kwargs"]

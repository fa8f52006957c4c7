"""The stack as a whole: up, status, schedule, the run's container, down and up again."""

import json
import subprocess
from typing import Any

import requests

from tests.stack import ACTIVITY_URL, DAILY, PROJECT, Stack, docker, eventually, settings_of


def service_ids(stack: Stack) -> dict[str, str]:
    """The ids of the services' containers."""
    return {c.Service or "": c.ID or "" for c in stack.compose.get_containers(include_all=True)}


def scheduled_runs(stack: Stack) -> list[tuple[Any, ...]]:
    return stack.sql(
        "SELECT r.expected_start_time FROM flow_run r JOIN deployment d ON d.id = r.deployment_id"
        " WHERE r.state_type = 'SCHEDULED' AND d.name = 'daily' ORDER BY 1"
    )


def waiting_ids(stack: Stack) -> list[str]:
    rows = stack.sql(
        "SELECT r.id::text FROM flow_run r JOIN deployment d ON d.id = r.deployment_id"
        " WHERE r.state_type = 'SCHEDULED' AND d.name = 'daily' ORDER BY 1"
    )
    return [run for (run,) in rows]


def test_up_shows_address_login_next_runs_and_the_artifact(
    stack: Stack, first_run: dict[str, Any]
) -> None:
    before = service_ids(stack)
    runs = stack.runs(DAILY)
    output = stack.make("up")

    assert f"http://127.0.0.1:{stack.port}" in output
    assert stack.login in output
    assert output.count(f"09:00 UTC  {DAILY}") == 3
    artifact = stack.api("GET", "/artifacts/activity/latest")
    assert artifact["type"] == "markdown"
    heading = artifact["data"].splitlines()[0]
    assert heading.startswith("# ")
    assert heading in output
    # Again: nothing migrated, nothing recreated, no second first run.
    assert "has this server's schema" in stack.run("docker", "compose", "logs", "migrate").stdout
    assert service_ids(stack) == before
    assert stack.runs(DAILY) == runs


def test_the_activity_is_one_of_the_upstreams(stack: Stack, first_run: dict[str, Any]) -> None:
    known = json.loads((PROJECT / "upstream/activities.json").read_text())
    left_by_run = {"flow_run_id": {"any_": [first_run["id"]]}, "key": {"any_": ["activity"]}}
    (artifact,) = stack.api("POST", "/artifacts/filter", {"artifacts": left_by_run})
    assert artifact["data"].splitlines()[0][2:] in {item["activity"] for item in known}
    stack.said(first_run["id"], "How about this")


def test_status_is_right_and_notices_a_stopped_worker(
    stack: Stack, first_run: dict[str, Any]
) -> None:
    assert "everything is right" in stack.make("status")
    stack.run("docker", "compose", "stop", "worker")
    try:
        assert "worker: is exited" in stack.make("status", code=2)
    finally:
        stack.run("docker", "compose", "start", "worker")
    eventually("a healthy status", 60, lambda: stack.run("make", "status").returncode == 0 or None)


def test_status_notices_that_no_run_is_waiting(stack: Stack, first_run: dict[str, Any]) -> None:
    """The failure that no health check sees: a server whose scheduler schedules nothing."""
    stack.run("docker", "compose", "pause", "worker")
    deployment = stack.deployment(DAILY)["id"]

    def none_waits() -> bool | None:
        """The scheduler looks by itself, too, once a minute: then once more."""
        for run in waiting_ids(stack):
            stack.api("DELETE", f"/flow_runs/{run}")
        output = stack.run("make", "status").stdout
        return f"{DAILY}: is scheduled, but no run of it waits" in output or None

    try:
        eventually("a word of it in make status", 60, none_waits)
    finally:
        stack.run("docker", "compose", "unpause", "worker")
        # The scheduler looks every few seconds at the deployments that were changed.
        stack.api("PATCH", f"/deployments/{deployment}", {"paused": False})
    eventually("three runs", 60, lambda: len(scheduled_runs(stack)) == 3 or None)


def test_three_runs_wait_and_deploying_again_from_the_host_changes_nothing(
    stack: Stack, first_run: dict[str, Any]
) -> None:
    deployment = stack.deployment(DAILY)
    before = scheduled_runs(stack)
    assert [(time.hour, time.minute) for (time,) in before] == [(9, 0)] * 3

    environment = {"UV_PROJECT_ENVIRONMENT": str(PROJECT / ".venv")}
    uv = str(PROJECT / ".venv/bin/uv")
    done = stack.run(
        uv, "run", "--no-sync", "prefect", "--no-prompt", "deploy", "--all", env=environment
    )
    assert done.returncode == 0, done.stdout
    assert " ".join(done.stdout.split()).count("successfully created") == 7

    after = stack.deployment(DAILY)
    assert after["id"] == deployment["id"]
    assert [s["id"] for s in after["schedules"]] == [s["id"] for s in deployment["schedules"]]
    # Prefect deletes the waiting runs at every deploy; the scheduler brings them back.
    eventually("the same three runs", 15, lambda: scheduled_runs(stack) == before or None)


def test_a_schedule_with_a_time_zone_of_its_own_and_a_deploy_that_touches_nothing(
    stack: Stack, first_run: dict[str, Any]
) -> None:
    path = stack.folder / ".env"
    original = path.read_text()
    path.write_text(original.replace("SCHEDULE_TIMEZONE=UTC", "SCHEDULE_TIMEZONE=Asia/Kolkata"))
    try:
        stack.make("deploy")
        times = eventually(
            "09:00 in Kolkata",
            60,
            lambda: [(t.hour, t.minute) for (t,) in scheduled_runs(stack)] == [(3, 30)] * 3 or None,
        )
        assert times
    finally:
        path.write_text(original)
        stack.make("deploy")
    eventually(
        "09:00 UTC",
        60,
        lambda: [(t.hour, t.minute) for (t,) in scheduled_runs(stack)] == [(9, 0)] * 3 or None,
    )
    waiting, ids = waiting_ids(stack), service_ids(stack)
    assert stack.make("deploy").count("suggest-activity/daily: unchanged") == 1
    assert waiting_ids(stack) == waiting
    assert service_ids(stack) == ids


def test_a_run_has_a_locked_down_container_of_its_own(
    stack: Stack, first_run: dict[str, Any]
) -> None:
    url = f"{ACTIVITY_URL}?fault_delay=8"
    run = stack.start(DAILY, url=url)
    container = stack.container(run)
    (facts,) = json.loads(docker("inspect", container))

    image = docker("image", "inspect", "--format", "{{.Id}}", f"{stack.project}-flow:local").strip()
    assert facts["Image"] == image
    assert list(facts["NetworkSettings"]["Networks"]) == [stack.flows_network]
    assert facts["Config"]["User"] == "10001:10001"
    host = facts["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Privileged"] is False
    assert host["Binds"] == [f"{stack.project}_data:/data:rw"]
    assert host["CpuQuota"] == 2 * host["CpuPeriod"]
    assert host["Memory"] == 1 << 30
    assert host["PidsLimit"] == 512

    assert docker("exec", container, "id", "-u").strip() == "10001"
    assert docker("exec", container, "getent", "hosts", "server")
    looked_up = subprocess.run(["docker", "exec", container, "getent", "hosts", "postgres"])
    assert looked_up.returncode == 2  # getent: not found
    written = subprocess.run(["docker", "exec", container, "touch", "/app/x"], capture_output=True)
    assert b"Read-only file system" in written.stderr

    assert stack.finished(run)["state_type"] == "COMPLETED"
    stack.cleared(run)


def test_a_killed_container_makes_a_crashed_run(stack: Stack, first_run: dict[str, Any]) -> None:
    """Docker forgets the exit code of a container that it removes by itself; our worker doesn't."""
    run = stack.start(DAILY, url=f"{ACTIVITY_URL}?fault_delay=60")
    container = stack.container(run)
    stack.running(run)
    docker("kill", container)
    ended = stack.finished(run, 60)
    assert ended["state_type"] == "CRASHED"
    assert "137" in ended["state"]["message"]
    stack.cleared(run)


def test_nobody_gets_in_without_the_login(stack: Stack, first_run: dict[str, Any]) -> None:
    url = f"http://127.0.0.1:{stack.port}"
    assert requests.get(f"{url}/api/ready", timeout=10).status_code == 200
    assert requests.get(f"{url}/api/admin/version", timeout=10).status_code == 401
    wrong = requests.get(f"{url}/api/admin/version", auth=("admin", "x"), timeout=10)
    assert wrong.status_code == 401
    assert "<html" in requests.get(url, timeout=10).text.lower()


def test_services_are_locked_down(stack: Stack, first_run: dict[str, Any]) -> None:
    secrets = [
        value
        for key, value in settings_of(stack.folder / ".env").items()
        if key in {"PREFECT_API_AUTH_STRING", "POSTGRES_PASSWORD", "PREFECT_SERVER_ENCRYPTION_KEY"}
    ]
    assert all(secrets)
    ids = service_ids(stack)
    assert ids.keys() == {
        "postgres",
        "migrate",
        "firewall",
        "server",
        "deploy",
        "worker",
        "fork-worker",
        "gate",
        "upstream",
    }
    for service, container in ids.items():
        text = docker("inspect", container)
        facts = json.loads(text)[0]
        host = facts["HostConfig"]
        assert not [secret for secret in secrets if secret in text], service
        assert ("docker.sock:" in text) == (service == "gate"), service
        # The one that is root, with the one power that it is there for.
        root = facts["Config"]["User"] in {"", "root", "0", "0:0"}
        assert root == (service == "firewall"), service
        powers = [power.removeprefix("CAP_") for power in host["CapAdd"] or []]
        assert powers == (["NET_ADMIN"] if root else []), service
        assert host["Privileged"] is False, service
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert host["SecurityOpt"] == ["no-new-privileges:true"], service
        assert host["Memory"] > 0, service
        assert host["PidsLimit"] > 0, service
        assert host["Init"], service
        assert host["LogConfig"]["Config"]["max-size"], service
        for bindings in (host["PortBindings"] or {}).values():
            assert {binding["HostIp"] for binding in bindings} == {"127.0.0.1"}, service
        networks = {
            name.removeprefix(f"{stack.project}_") for name in facts["NetworkSettings"]["Networks"]
        }
        assert networks == {
            "postgres": {"backend"},
            "migrate": {"backend"},
            "server": {"backend", "flows"},
            "gate": {"none"},
            "firewall": {"host"},
        }.get(service, {"flows"}), service
    internal = docker("network", "inspect", "--format", "{{.Internal}}", f"{stack.project}_backend")
    assert internal.strip() == "true"


def test_images_carry_what_they_should_and_no_more(stack: Stack) -> None:
    def imports(image: str, module: str) -> bool:
        command = ["docker", "run", "--rm", "--network=none", f"{stack.project}-{image}:local"]
        return subprocess.run([*command, "python", "-c", f"import {module}"]).returncode == 0

    assert imports("flow", "prefect, requests, httpx, pandas")
    assert not imports("flow", "prefect_docker")
    assert imports("worker", "prefect_docker")
    for image in ("flow", "worker", "server", "upstream", "gate", "firewall"):
        name = f"{stack.project}-{image}:local"
        uv = docker(
            "run",
            "--rm",
            "--network=none",
            "--entrypoint=sh",
            name,
            "-c",
            "command -v uv || echo none",
        )
        assert uv.strip() == "none"
        history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", name)
        assert stack.login not in history


def test_the_flow_works_by_itself(stack: Stack, first_run: dict[str, Any]) -> None:
    """`python flows/suggest_activity.py` on the host, login and address from .env."""
    upstream = f"http://127.0.0.1:{stack.settings['UPSTREAM_PORT']}/api/activity"
    done = stack.run(
        str(PROJECT / ".venv/bin/python"),
        "flows/suggest_activity.py",
        env={"ACTIVITY_API_URL": upstream},
    )
    assert done.returncode == 0, done.stdout
    assert "Completed" in done.stdout
    assert f":{stack.port}" in done.stdout or "View at" in done.stdout


def test_run_waits_and_its_exit_code_tells(stack: Stack, first_run: dict[str, Any]) -> None:
    assert "Completed" in stack.make("run", "FLOW=suggest-activity/daily")
    assert "nobody/knows" in stack.make("run", "FLOW=nobody/knows", code=2)


def test_down_and_up_keep_history(stack: Stack, first_run: dict[str, Any]) -> None:
    before = {run["id"] for run in stack.runs(DAILY)}
    stack.make("down")
    assert service_ids(stack) == {}
    assert "not running" in stack.make("status", code=2)
    stack.make("up")
    assert {run["id"] for run in stack.runs(DAILY)} == before
    assert "everything is right" in stack.make("status")


def test_up_closes_a_port_that_was_opened_to_all(stack: Stack, first_run: dict[str, Any]) -> None:
    """As the audit says that it does."""
    port = settings_of(stack.folder / ".env")["UPSTREAM_PORT"]
    loose = stack.folder / "loose.yml"
    loose.write_text(f"services: {{upstream: {{ports: !override ['0.0.0.0:{port}:8000']}}}}\n")
    files = ("--file", "docker-compose.yml", "--file", loose.name)
    opened = stack.run("docker", "compose", *files, "up", "--detach", "--wait", "upstream")
    assert opened.returncode == 0, opened.stdout
    loose.unlink()
    published = ("docker", "compose", "port", "upstream", "8000")
    assert stack.run(*published).stdout.strip() == f"0.0.0.0:{port}"
    stack.make("up")
    assert stack.run(*published).stdout.strip() == f"127.0.0.1:{port}"


def test_env_is_private(stack: Stack) -> None:
    assert (stack.folder / ".env").stat().st_mode & 0o777 == 0o600
    assert (stack.folder / ".secrets").stat().st_mode & 0o777 == 0o700

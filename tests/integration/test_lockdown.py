"""Nobody gets in without the login; secrets are where they belong; a flow reaches what it may."""

import base64
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from requests.auth import HTTPBasicAuth
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.stack import ACTIVITY_URL, DAILY, Stack, docker, settings_of

NOTHING = "00000000-0000-0000-0000-000000000000"
WRONG = ("admin", "wrong")
SECRETS = ("PREFECT_API_AUTH_STRING", "POSTGRES_PASSWORD", "PREFECT_SERVER_ENCRYPTION_KEY")

# Every route of the server's application, as it says itself: documented or not.
ROUTES = """
import json
from prefect.server.api.server import create_app
from starlette.routing import Mount, Route, WebSocketRoute

found = []

def look(routes, prefix=""):
    for route in routes:
        if router := getattr(route, "original_router", None):
            look(router.routes, prefix)
        elif isinstance(route, Mount):
            found.append(("GET", f"{prefix}{route.path}/x"))
            look(route.routes or [], prefix + route.path)
        elif isinstance(route, WebSocketRoute):
            found.append(("WEBSOCKET", prefix + route.path))
        elif isinstance(route, Route):
            found.extend((method, prefix + route.path) for method in [*route.methods, "OPTIONS"])
        else:
            raise TypeError(type(route))

look(create_app(ephemeral=True).routes)
print("routes", json.dumps(sorted(set(found))))
"""

# What answers without a login, and nothing else does.
OPEN = {
    # Is the server there, and its database? For health checks.
    ("GET", "/api/health"),
    ("GET", "/api/ready"),
    # Where the UI finds its API, and that it has to ask for a login.
    ("GET", "/ui-settings"),
    # What Prefect's own documentation tells, too; there is no setting to close it.
    *(
        (method, path)
        for method in ("GET", "HEAD")
        for path in ("/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc")
    ),
    # The UI: pages and scripts, the same for everybody.
    ("GET", "/x"),
}


@pytest.fixture(scope="module")
def url(stack: Stack, first_run: dict[str, Any]) -> str:
    return f"http://127.0.0.1:{stack.port}"


@pytest.fixture(scope="module")
def routes(stack: Stack, url: str) -> list[tuple[str, str]]:
    """Method and path of every route, with something in the place of its parameters."""
    container = docker("compose", "--project-name", stack.project, "ps", "--quiet", "server")
    output = docker("exec", container.strip(), "entrypoint.sh", "python", "-c", ROUTES)
    (line,) = [line for line in output.splitlines() if line.startswith("routes ")]
    found = []
    for method, path in json.loads(line.removeprefix("routes ")):
        parts = [NOTHING if part.startswith("{") else part for part in path.split("/")]
        found.append((method, "/".join(parts)))
    return found


@pytest.fixture(scope="module")
def csrf(stack: Stack, url: str) -> dict[str, str]:
    """A token that is good: what is refused with it is refused for want of a login."""
    token = stack.api("GET", "/csrf-token?client=test_lockdown")["token"]
    return {"Prefect-Csrf-Client": "test_lockdown", "Prefect-Csrf-Token": token}


@pytest.mark.parametrize("auth", [None, WRONG, ("", "")])
def test_no_route_answers_without_the_login(
    url: str,
    routes: list[tuple[str, str]],
    csrf: dict[str, str],
    auth: tuple[str, str] | None,
) -> None:
    def status(route: tuple[str, str]) -> int:
        with requests.Session() as session:
            session.trust_env = False
            method, path = route
            answer = session.request(method, url + path, headers=csrf, auth=auth, timeout=30)
        return answer.status_code

    asked = [route for route in routes if route[0] != "WEBSOCKET"]
    assert len(asked) > 300
    with ThreadPoolExecutor(4) as pool:
        answered = dict(zip(asked, pool.map(status, asked), strict=True))
    refused = {401, 405}  # 405: outside of the API, a method that the path hasn't got
    assert {route for route, code in answered.items() if code not in refused} == OPEN
    of_api = {code for (_, path), code in answered.items() if path.startswith("/api/")}
    assert of_api == {200, 401}


def test_no_websocket_answers_without_the_login(
    stack: Stack, url: str, routes: list[tuple[str, str]]
) -> None:
    paths = [path for method, path in routes if method == "WEBSOCKET"]
    assert {"/api/events/in", "/api/events/out", "/api/logs/out"} < set(paths)
    for path in paths:
        address = url.replace("http", "ws") + path
        with pytest.raises(InvalidStatus, match="403"), connect(address):
            pass
        assert handshake(address, {"type": "auth", "token": stack.login}) == "auth_success"
        for message in (
            {"type": "auth"},
            {"type": "auth", "token": ""},
            {"type": "auth", "token": "admin:wrong"},
            {"type": "subscribe", "token": stack.login},
        ):
            assert handshake(address, message) == "closed: 1008", (path, message)


def handshake(address: str, message: dict[str, str]) -> str:
    """What a websocket answers to a first message."""
    with connect(address, subprotocols=[Subprotocol("prefect")]) as websocket:
        websocket.send(json.dumps(message))
        try:
            return str(json.loads(websocket.recv(timeout=10))["type"])
        except ConnectionClosed as closed:
            return f"closed: {closed.rcvd.code if closed.rcvd else closed}"


def test_nothing_is_changed_without_a_token(
    stack: Stack, url: str, csrf: dict[str, str], routes: list[tuple[str, str]]
) -> None:
    login = HTTPBasicAuth(*stack.login.split(":", 1))
    changing = [path for method, path in routes if method in {"POST", "PUT", "PATCH", "DELETE"}]
    assert len(changing) > 100
    for method, path in routes:
        if method in {"POST", "PUT", "PATCH", "DELETE"}:
            answer = requests.request(method, url + path, auth=login, timeout=30)
            assert (answer.status_code, answer.json()["detail"]) == (403, "Missing CSRF token.")
    count = f"{url}/api/flow_runs/count"
    for headers, code in (
        (csrf, 200),
        (csrf | {"Prefect-Csrf-Token": "0" * 64}, 403),
        (csrf | {"Prefect-Csrf-Client": "another"}, 403),
    ):
        answer = requests.post(count, json={}, auth=login, headers=headers, timeout=30)
        assert answer.status_code == code, headers


# A worker's client, which does many things at once, as at its start and when its token expires.
AT_ONCE = """
import asyncio, sys
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

async def ask(client):
    return (await client.request("POST", "/flow_runs/count", json={})).status_code

async def main():
    async with get_client() as client:
        for retries in (0, 1):
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: retries}):
                print(set(await asyncio.gather(*(ask(client) for _ in range(20)))), flush=True)
            sys.stdin.readline()

asyncio.run(main())
"""


def test_a_client_that_asks_many_things_at_once_keeps_its_token(stack: Stack, url: str) -> None:
    container = docker("compose", "--project-name", stack.project, "ps", "--quiet", "worker")
    command = ("docker", "exec", "--interactive", container.strip(), "entrypoint.sh", "python")
    with subprocess.Popen(
        [*command, "-c", AT_ONCE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "{200}\n"
        stack.sql("DELETE FROM csrf_token WHERE client <> 'test_lockdown'")  # as by a restore
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "{200}\n"


@pytest.mark.parametrize("foreign", ["https://example.org", "null", "http://127.0.0.1"])
def test_another_sites_page_gets_no_answer(stack: Stack, url: str, foreign: str) -> None:
    login = HTTPBasicAuth(*stack.login.split(":", 1))

    def allowed(origin: str, method: str = "GET") -> tuple[int, str | None]:
        headers = {"Origin": origin}
        if method == "OPTIONS":
            headers["Access-Control-Request-Method"] = "GET"
            headers["Access-Control-Request-Headers"] = "authorization"
        answer = requests.request(
            method, f"{url}/api/admin/version", auth=login, headers=headers, timeout=30
        )
        return answer.status_code, answer.headers.get("Access-Control-Allow-Origin")

    assert allowed(foreign) == (200, None)
    assert allowed(foreign, "OPTIONS") == (400, None)
    assert allowed(url) == (200, url)
    assert allowed(url, "OPTIONS") == (200, url)


def test_a_page_may_not_change_anything_across_origins(url: str) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        headers = {"Origin": url, "Access-Control-Request-Method": method}
        answer = requests.options(f"{url}/api/flow_runs/count", headers=headers, timeout=30)
        assert answer.status_code == 400, method


# ── Where secrets are ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def flow_container(stack: Stack, url: str) -> Iterator[str]:
    """A real flow run's container, at work."""
    run = stack.start(DAILY, url=f"{ACTIVITY_URL}?fault_delay=60")
    container = stack.container(run)
    stack.running(run)
    yield container
    state = {"state": {"type": "CANCELLING"}}
    assert stack.api("POST", f"/flow_runs/{run}/set_state", state)["status"] == "ACCEPT"
    assert stack.finished(run)["state_type"] == "CANCELLED"


def secrets_of(stack: Stack) -> dict[str, str]:
    """The stack's secrets, in each form that they go about in."""
    found = {key: settings_of(stack.folder / ".env")[key] for key in SECRETS}
    login = found["PREFECT_API_AUTH_STRING"]
    found["password"] = login.split(":", 1)[1]
    found["basic"] = base64.b64encode(login.encode()).decode()
    assert all(len(secret) >= 24 for secret in found.values())
    return found


def test_secrets_are_in_nothing_that_is_shown(stack: Stack, flow_container: str) -> None:
    label = f"label=com.docker.compose.project={stack.project}"
    shown = {
        "compose config": stack.run("docker", "compose", "--profile", "*", "config").stdout,
        "compose logs": stack.run("docker", "compose", "--profile", "*", "logs").stdout,
        "flow container's log": stack.run("docker", "logs", flow_container).stdout,
        "flow container's processes": docker("top", flow_container, "-eo", "pid,args"),
    }
    assert "POSTGRES_PASSWORD_FILE" in shown["compose config"]
    assert "GET /api" in shown["compose logs"] or "Uvicorn" in shown["compose logs"]
    images = docker("image", "ls", "--quiet", "--filter", label).split()
    assert len(set(images)) >= 4
    for image in images:
        shown[f"history of {image}"] = docker("history", "--no-trunc", image)
        shown[f"image {image}"] = docker("image", "inspect", image)
    # Those of services: flow containers have the project's label from their image.
    compose = ("compose", "--project-name", stack.project, "ps", "--quiet")
    containers = docker(*compose, "--all").split()
    assert len(containers) >= 7
    for container in containers:
        shown[f"container {container}"] = docker("inspect", container)
    for container in docker(*compose).split():
        shown[f"processes of {container}"] = docker("top", container, "-eo", "pid,args")
    for what, text in shown.items():
        assert text, what
        assert not {name for name, secret in secrets_of(stack).items() if secret in text}, what


def test_a_flow_container_is_given_the_least_that_works(stack: Stack, flow_container: str) -> None:
    (facts,) = json.loads(docker("inspect", flow_container))
    environment = dict(entry.split("=", 1) for entry in facts["Config"]["Env"])
    assert environment.keys() == {
        # The image's.
        "PATH",
        "PREFECT_HOME",
        "PYTHONUNBUFFERED",
        # Whom to ask, and by which login.
        "PREFECT_API_AUTH_STRING",
        "PREFECT_API_URL",
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED",
        "PREFECT_UI_URL",
        # The base job template's.
        "ACTIVITY_API_URL",
        "DATA_DIR",
        "FACT_API_URL",
        "GITHUB_API_URL",
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH",
        "USERS_API_URL",
        # Which run of what it is.
        "PREFECT__DEPLOYMENT_ID",
        "PREFECT__DEPLOYMENT_NAME",
        "PREFECT__FLOW_ID",
        "PREFECT__FLOW_NAME",
        "PREFECT__FLOW_RUN_ID",
        "PREFECT__FLOW_RUN_TAKEN_BY",
        "PREFECT__WORKER_NAME",
    }
    text = json.dumps(facts)
    assert {name for name, secret in secrets_of(stack).items() if secret in text} == {
        "PREFECT_API_AUTH_STRING",
        "password",
    }

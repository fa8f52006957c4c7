"""What makes a copy of this stack stock: Prefect's own worker and command, and its defaults.

Made from the copy's own files, so that whatever command or environment variable is tuned there, now
or later, is reset here. What favours stock, too, stays: CPU shares, seldom health checks.
"""

import copy
import re
from typing import Any

WORKER = ["prefect", "worker", "start", "--pool", "docker-pool", "--type", "docker"]
WORKER += ["--name", "worker", "--with-healthcheck"]
SERVER = ["prefect", "server", "start", "--host", "0.0.0.0", "--port", "4200"]  # noqa: S104  # in its container
# Stock's worker has the engine's socket itself.
SOCKET = """\
    volumes: !override ["${DOCKER_SOCKET}:/var/run/docker.sock"]
    group_add: ["${DOCKER_GID}"]
    depends_on: !override {server: {condition: service_healthy}}"""
SERVICES = {"server": SERVER, "worker": WORKER, "postgres": None}

# All that stock keeps: connections, login, database, UI, and no telemetry. The rest is tuning.
KEPT = re.compile(
    r"""
    PREFECT_API_(URL|AUTH_STRING)(_FILE)? | PREFECT_UI_URL | DO_NOT_TRACK
    | PREFECT_SERVER_DATABASE_(DRIVER|HOST|PORT|NAME|USER|PASSWORD|MIGRATE_ON_START)(_FILE)?
    | PREFECT_SERVER_(API_AUTH_STRING|ENCRYPTION_KEY)(_FILE)? | PREFECT_SERVER_ANALYTICS_ENABLED
    | PREFECT_SERVER_UI_\w+
    | POSTGRES_(USER|DB|PASSWORD)(_FILE)? | \w+_API_URL | DATA_DIR
    | PREFECT_RESULTS_LOCAL_STORAGE_PATH
    """,
    re.VERBOSE,
)


def tuned(environment: dict[str, Any]) -> list[str]:
    """The variables that stock doesn't have."""
    return sorted(key for key in environment if not KEPT.fullmatch(key))


def override(compose: dict[str, Any]) -> str:
    """A Compose file to lay over the project's own, read as a dictionary."""
    lines = ["services:"]
    for name, command in SERVICES.items():
        words = "!reset null" if command is None else f"!override {command!r}"
        lines += [f"  {name}:", f"    command: {words}"]
        if keys := tuned(compose["services"][name].get("environment") or {}):
            lines += ["    environment:", *(f"      {key}: !reset null" for key in keys)]
        lines += [SOCKET] if name == "worker" else []
    lines += ["  fork-worker:", "    scale: 0", "  gate:", "    scale: 0"]  # nothing of the kind
    return "\n".join(lines) + "\n"


def template(ours: dict[str, Any]) -> dict[str, Any]:
    """The base job template with Prefect's own command, run as the image's entry point finds it."""
    found = copy.deepcopy(ours)
    found["job_configuration"]["command"] = "{{ command }}"
    found["job_configuration"]["container_create_kwargs"]["entrypoint"] = ["entrypoint.sh"]
    variables = found["variables"]["properties"]
    variables["command"]["default"] = None
    environment = variables["env"]["default"]
    variables["env"]["default"] = {
        key: environment[key] for key in environment if KEPT.fullmatch(key)
    }
    return found

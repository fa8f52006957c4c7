"""Brings the server to what the project's files say: the work pool, then every deployment.

The work pools come first, `docker-pool` from ``base-job-template.json``, then the deployments from
``prefect.yaml``. A bad deployment is reported and doesn't stop the others; the exit code is then 1.
What hasn't changed since the last time isn't touched: a deployment's version ends in a fingerprint
of all that it was made from. One that has changed is scheduled anew here and now: the server
deletes its runs that wait, and its scheduler, which comes by every few seconds and looks ahead
only, would lose one that is due in between.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import Any
from urllib.parse import urlsplit

import prefect
import yaml
from prefect import Flow
from prefect.cli import app
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound
from prefect.variables import Variable
from prefect_fork.worker import ForkWorker

from worker.alerts import apply_alerts
from worker.checks import DEPLOYMENTS, FORK_POOL, MEND, WORK_POOL, Problem, check, check_zone

TEMPLATE = Path(__file__).with_name("base-job-template.json")
PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
RESULT_DAYS = 30
REFERENCE = re.compile(r"\{\{\s*(\$|prefect\.variables\.)([\w-]+)")


def main() -> int:
    """Deploys everything; returns the exit code."""
    try:
        with get_client(sync_client=True) as client:
            for name, (kind, template) in work_pools().items():
                say(f"work pool {name}: {apply_work_pool(client, name, kind, template)}")
            alerts = alert_webhook_url()
            Variable.set("schedule_timezone", schedule_timezone(), overwrite=True)
            say(f"alerts: {apply_alerts(client, alerts)}")
            prune_results(Path(os.environ["DATA_DIR"]) / ".results")
            failed = [name for name, ok in deploy_all(client, read_project()) if not ok]
    except Problem as problem:
        report("nothing was deployed", problem)
        return 1
    if failed:
        print(
            f"\n{len(failed)} not deployed: {', '.join(failed)}. Mend the above, then: make deploy"
        )
        print(
            "The image has the new code: what ran before and is broken now fails at its next run."
        )
    return 1 if failed else 0


def say(text: str) -> None:
    """One line of what was done."""
    print(f"  ok    {text}", flush=True)


def report(what: str, problem: BaseException | str) -> None:
    """A problem, indented under its title."""
    print(f"  FAIL  {what}", file=sys.stderr)
    for line in str(problem).splitlines():
        print(f"        {line}", file=sys.stderr, flush=True)


def work_pools() -> dict[str, tuple[str, dict[str, Any]]]:
    """The type and the base job template of each work pool, by its name."""
    return {
        WORK_POOL: ("docker", read_template(TEMPLATE.read_text(), os.environ)),
        FORK_POOL: ("fork", ForkWorker.get_default_base_job_template()),
    }


def apply_work_pool(
    client: SyncPrefectClient, name: str, kind: str, template: dict[str, Any]
) -> str:
    """Creates a pool, or gives it the template where that has changed; says which.

    A pool's other settings (paused, concurrency limit) are the user's and stay as they are.
    """
    try:
        found = client.read_work_pool(name).base_job_template
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))
        return "created"
    if found == template:
        return "unchanged"
    client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
    return "updated"


def read_template(text: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The base job template with ``${NAME}`` replaced by what Compose says of this stack.

    Raises:
        Problem: It isn't JSON, or names something that the environment hasn't got.
    """

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item) for item in value]
        if isinstance(value, str):
            return PLACEHOLDER.sub(lambda match: environment[match[1]], value)
        return value

    try:
        template: dict[str, Any] = fill(json.loads(text))
    except json.JSONDecodeError as error:
        raise Problem(
            f"JSON in {TEMPLATE.name}", str(error), "mend it, then: make deploy"
        ) from error
    except KeyError as error:
        raise Problem(
            f"the variables that {TEMPLATE.name} names",
            f"no {error}",
            "add it to `deploy` in docker-compose.yml, then: make deploy",
        ) from error
    return template


def schedule_timezone() -> str:
    """SCHEDULE_TIMEZONE, which prefect.yaml reads as a Prefect variable, so from anywhere."""
    return check_zone(os.environ["SCHEDULE_TIMEZONE"], "SCHEDULE_TIMEZONE in .env")


def prune_results(folder: Path) -> None:
    """Removes kept results that no retry will ask for any more; Prefect never does."""
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):  # what flows do there keeps nothing from being deployed
            found = path.lstat()
            if S_ISREG(found.st_mode) and found.st_mtime < time.time() - RESULT_DAYS * 86400:
                path.unlink()


def alert_webhook_url() -> str:
    """ALERT_WEBHOOK_URL, which may say who you are to Slack and so comes as a secret.

    Raises:
        Problem: It isn't empty, and no URL either.
    """
    url = Path(os.environ["ALERT_WEBHOOK_URL_FILE"]).read_text().strip()
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("not a URL")
    if url and not (parts.scheme in ("http", "https") and parts.hostname):
        raise Problem(
            "a URL that begins with http:// or https://, or nothing, as ALERT_WEBHOOK_URL in .env",
            "something else",
            "change it, then: make deploy",
        )
    return url


def read_project() -> dict[str, Any]:
    """prefect.yaml as a dictionary with a list ``deployments``."""
    try:
        project = yaml.safe_load(DEPLOYMENTS.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Problem(f"YAML in {DEPLOYMENTS}", str(error), "mend it, then: make deploy") from error
    if not isinstance(project, dict) or not isinstance(project.get("deployments"), list):
        raise Problem(
            f"a list `deployments:` in {DEPLOYMENTS}", "none", "add one, then: make deploy"
        )
    return project


def deploy_all(client: SyncPrefectClient, project: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Deploys one by one, yielding each one's name and whether it went well."""
    seen: set[str] = set()
    for number, entry in enumerate(project["deployments"], start=1):
        name = name_of(entry) or f"deployment {number}"
        try:
            flow = check(entry)
            name = f"{flow.name}/{entry['name']}"
            if name in seen:
                raise Problem("one entry a deployment", f"a second {name}", MEND)
            seen.add(name)
            version = "+".join(
                filter(None, [str(entry.get("version", "")), fingerprint(project, entry, flow)])
            )
            if version == deployed_version(client, name):
                say(f"{name}: unchanged")
            else:
                before = datetime.now(UTC)
                deploy({**project, "deployments": [{**entry, "version": version}]})
                schedule(client, name, before)
                say(f"{name}: deployed")
            yield name, True
        except Problem as problem:
            report(name, problem)
            yield name, False
        except Exception as error:  # whatever it is, the others are to be deployed
            report(name, "".join(traceback.format_exception_only(error)).strip())
            yield name, False


def name_of(entry: Any) -> str | None:
    """An entry's name as far as it can be told without importing its flow."""
    if not isinstance(entry, dict) or not entry.get("name"):
        return None
    return f"{entry['name']} ({entry.get('entrypoint', 'no entrypoint')})"


def fingerprint(project: dict[str, Any], entry: dict[str, Any], flow: Flow[..., Any]) -> str:
    """Changes with anything that a deployment is made from: entry, steps, flow, Prefect itself.

    Args:
        project: The whole prefect.yaml, whose pull steps hold for every entry without its own.
        entry: The deployment's part of it.
        flow: Its flow, for the parameters, the description and the code's own version.

    Returns:
        12 hexadecimal digits.
    """
    text = json.dumps([project.get("pull"), entry], sort_keys=True, default=str)
    references = {
        "".join(match): os.environ.get(match[1]) if match[0] == "$" else Variable.get(match[1])
        for match in REFERENCE.findall(text)
    }
    made_from = [
        text,
        references,
        flow.name,
        flow.description,
        flow.version,
        flow.parameters.model_dump(),
        prefect.__version__,
    ]
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:12]


def deployed_version(client: SyncPrefectClient, name: str) -> str | None:
    """The version that the server has of a deployment; None if it has no such deployment."""
    try:
        return client.read_deployment_by_name(name).version
    except ObjectNotFound:
        return None


def deploy(project: dict[str, Any]) -> None:
    """`prefect deploy --all` on a prefect.yaml of one deployment; shows its output if it fails."""
    output = io.StringIO()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(project, file)
        file.flush()
        # In this process: a `prefect` of its own would take 2 s for each deployment to import.
        sys.argv = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", file.name]
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                app()
            except SystemExit as error:
                if error.code:
                    raise Problem(
                        "`prefect deploy` to end well",
                        output.getvalue(),
                        "mend that, then: make deploy",
                    ) from error


def schedule(client: SyncPrefectClient, name: str, since: datetime) -> None:
    """Schedules a deployment's runs from a time on; those that are there already stay as they are.

    (The server's scheduler does the same; both go by the run's idempotency key.)
    """
    deployment = client.read_deployment_by_name(name)
    if not deployment.paused:
        client.request(
            "POST",
            "/deployments/{id}/schedule",
            path_params={"id": deployment.id},
            json={"start_time": since.isoformat()},
        )


if __name__ == "__main__":
    sys.exit(main())

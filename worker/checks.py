"""What `prefect deploy` would let pass or explain badly, told before anything is deployed."""

import json
import traceback
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from prefect import Flow
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ScriptError
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.schema_tools import ValidationError as SchemaError
from prefect.utilities.schema_tools import validate
from pydantic import ValidationError

WORK_POOL = "docker-pool"
FORK_POOL = "fork-pool"
DEPLOYMENTS = Path("prefect.yaml")
MEND = f"mend it in {DEPLOYMENTS}, then: make deploy"


class Problem(Exception):
    """Something to mend in the project's files: what was expected, what was found, what to do."""

    def __init__(self, expected: str, found: str, fix: str) -> None:
        """Takes the three lines of the message."""
        super().__init__(f"expected: {expected}\nfound:    {found}\nfix:      {fix}")


def check(entry: Any) -> Flow[..., Any]:
    """Looks at what `prefect deploy` would let pass or explain badly; returns the entry's flow.

    Raises:
        Problem: The entry, its flow or one of its schedules is not right.
    """
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name or {"/", "%", "&", "<", ">"} & set(name):
        raise Problem("a `name:` without / % & < >", repr(name or entry)[:200], MEND)
    entrypoint = entry.get("entrypoint")
    if not isinstance(entrypoint, str) or ":" not in entrypoint:
        raise Problem("`entrypoint: flows/module.py:function`", repr(entrypoint), MEND)
    schedules = entry.get("schedules") or []
    if not isinstance(schedules, list):
        raise Problem("a list as `schedules:`", repr(schedules), MEND)
    for schedule in schedules:
        check_schedule(schedule, MEND)
    pool = entry.get("work_pool") or {}
    if not isinstance(pool, dict) or not pool.get("name"):
        raise Problem(f"`work_pool: {{name: {WORK_POOL}}}`", repr(pool), MEND)
    own_image = "image" in (pool.get("job_variables") or {})
    try:
        # Imports the module as a run would. `prefect deploy` is content with a placeholder, and so
        # are we for a flow that may import what only an image of its own has.
        flow: Flow[..., Any] = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=own_image)
    except (Exception, SystemExit) as error:
        cause = error.user_exc if isinstance(error, ScriptError) else error
        found = "".join(traceback.format_exception_only(cause)).strip()
        raise Problem(
            f"a flow at {entrypoint}",
            found,
            "mend the module (or, for what it imports: uv add NAME), then: make deploy",
        ) from error
    check_parameters(flow, [entry, *schedules])
    return flow


def check_parameters(flow: Flow[..., Any], givers: list[Any]) -> None:
    """Raises Problem for a parameter that the flow hasn't got, or a value that it doesn't take.

    Args:
        flow: The flow.
        givers: The entry and its schedules, each with or without `parameters`.
    """
    schema = flow.parameters.model_dump()
    for giver in givers:
        given = giver.get("parameters") or {}
        if not isinstance(given, dict):
            raise Problem("`parameters: {name: value}`", repr(given), MEND)
        if unknown := sorted(given.keys() - schema["properties"].keys()):
            known = ", ".join(schema["properties"]) or "none"
            raise Problem(f"parameters of {flow.name}: {known}", ", ".join(unknown), MEND)
        # As JSON, which they go to the server as; templates are filled on the way there.
        values = json.loads(json.dumps(given, default=str))
        plain = {key: value for key, value in values.items() if "{{" not in str(value)}
        try:
            validate(plain, schema, raise_on_error=True, ignore_required=True)
        except SchemaError as error:
            raise Problem(f"parameters that {flow.name} takes", str(error), MEND) from error


def check_schedule(schedule: Any, mend: str) -> None:
    """Raises Problem unless it has one of cron, interval and rrule, and each is right."""
    if not isinstance(schedule, dict) or len({"cron", "interval", "rrule"} & schedule.keys()) != 1:
        raise Problem(
            "one of `cron:`, `interval:` and `rrule:` in a schedule", repr(schedule), mend
        )
    zone = schedule.get("timezone")
    if isinstance(zone, str) and "{{" not in zone:
        check_zone(zone, f"timezone of a schedule in {DEPLOYMENTS}")
    interval = schedule.get("interval", 1)
    if isinstance(interval, bool) or not isinstance(interval, int | float) or interval <= 0:
        raise Problem("an interval in seconds, more than 0", repr(interval), mend)
    if "cron" in schedule:
        try:
            CronSchedule(cron=schedule["cron"])
        except ValidationError as error:
            raise Problem(
                'a cron expression such as "0 9 * * *"',
                f"{schedule['cron']!r} ({error.errors()[0]['msg']})",
                mend,
            ) from error


def check_zone(name: str, where: str) -> str:
    """Returns the zone's name; raises Problem for one that nobody knows."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise Problem(
            f"an IANA time zone such as Europe/Berlin as {where}",
            repr(name),
            "change it, then: make deploy",
        ) from error
    return name

"""Runs a deployment now, shows its logs as they come, and ends with its state as exit code."""

import asyncio
import json
import logging
import sys
from typing import Any, NoReturn

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, Log
from prefect.client.schemas.sorting import LogSort
from prefect.events import FlowRunSubscriber
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings

from ops.stack import full_names

AGAIN = 'make run FLOW=suggest-activity/daily, or with PARAMS=\'{"name": "value"}\''


async def main(name: str, text: str) -> int:
    """Runs a deployment; returns the exit code, 0 for a completed run.

    Args:
        name: ``flow/deployment``.
        text: Its parameters as a JSON object; empty for none.
    """
    async with get_client() as client:
        run = await start(client, name, text)
        url = f"{get_current_settings().ui_url}/runs/flow-run/{run.id}"
        print(f"==> {name}: run {run.name} (times in UTC)\n    {url}", flush=True)
        await show_logs(client, run)
        run = await client.read_flow_run(run.id)
    state = run.state
    if state is None or not state.is_final():
        print(f"The server stopped telling; the run goes on; see {url}", file=sys.stderr)
        return 1
    print(f"  {'ok  ' if state.is_completed() else 'FAIL'}  {run.name}: {state.name}", end="")
    print(f": {state.message}" if state.message else "")
    return 0 if state.is_completed() else 1


async def start(client: PrefectClient, name: str, text: str) -> FlowRun:
    """Starts the run; ends the process with an error that says what was wrong, if something was."""
    try:
        deployment = await client.read_deployment_by_name(name)
    except (ObjectNotFound, ValueError):
        known = sorted((await full_names(client)).values())
        if not known:
            refuse("FLOW", "a deployment", "none at all", "make deploy")
        refuse("FLOW", listed("one of", known), name or "nothing", f"make run FLOW={known[0]}")
    properties = (deployment.parameter_openapi_schema or {}).get("properties", {})
    expected = listed(f"what {name} takes:", [described(*item) for item in properties.items()])
    again = f"make run FLOW={name}"
    parameters = read_json(text, again)
    if not isinstance(parameters, dict):
        refuse("PARAMS", "a JSON object", text, again)
    # The server checks the values, but lets names pass that the flow hasn't got.
    if unknown := sorted(parameters.keys() - properties.keys()):
        refuse("PARAMS", expected, ", ".join(unknown), again)
    try:
        return await client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    except PrefectHTTPStatusError as error:
        if error.response.status_code >= 500:
            raise
        refuse("PARAMS", expected, error.response.json().get("detail", str(error)), again)


def described(name: str, schema: dict[str, Any]) -> str:
    """A parameter in one line: what it takes, and what for."""
    words = {"minimum": "from", "maximum": "to", "default": "default", "examples": "such as"}
    facts = [
        f"{word} {json.dumps(schema[key][0] if key == 'examples' else schema[key])}"
        for key, word in words.items()
        if schema.get(key) not in (None, "")
    ]
    kind = str(schema.get("type", "value"))
    return f"{name} ({', '.join([kind, *facts])}): {schema.get('description', '')}"


def read_json(text: str, again: str) -> Any:
    """Takes JSON, without what it or Postgres can't hold: NaN, half a character, NUL."""
    try:
        found = json.loads(text or "{}")
        if "\\u0000" in json.dumps(found, allow_nan=False, ensure_ascii=False).encode().decode():
            raise ValueError("the character NUL")
    except ValueError as error:
        refuse("PARAMS", "a JSON object", f"{text} ({error})", again)
    return found


async def show_logs(client: PrefectClient, run: FlowRun) -> None:
    """Prints the run's log lines until it has ended and no more come."""
    shown: set[tuple[str, ...]] = set()

    def show(log: Log) -> None:
        line = (f"{log.timestamp:%H:%M:%S}", logging.getLevelName(log.level), log.message)
        if (key := (log.timestamp.isoformat(), *line)) not in shown:
            shown.add(key)
            print("{}  {:<7}  {}".format(*line), flush=True)

    async with FlowRunSubscriber(run.id) as subscriber:
        async for item in subscriber:
            if isinstance(item, Log):
                show(item)
            elif item.event == "prefect.flow-run.Late":
                print("No worker has taken it yet; is there one? make status", flush=True)
    # What came before the subscription, or after the last patience with it.
    of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
    offset = 0
    while logs := await client.read_logs(of_run, offset=offset, sort=LogSort.TIMESTAMP_ASC):
        offset += len(logs)
        for log in logs:
            show(log)


def listed(title: str, lines: list[str]) -> str:
    """A title and lines below it, indented for `refuse`."""
    return "\n                  ".join([title, *lines])


def refuse(what: str, expected: str, found: str, fix: str) -> NoReturn:
    """Ends with an error in the form of setup/lib.sh's `problem`."""
    print(
        f"  FAIL  {what}\n        expected: {expected}\n        found:    {found}\n"
        f"        fix:      {fix}",
        file=sys.stderr,
    )
    sys.exit(1)


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(*sys.argv[1:])))
    except KeyboardInterrupt:
        sys.exit(130)

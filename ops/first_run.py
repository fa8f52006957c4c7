"""The end of `make up`: one run of the daily flow, if none went well yet, and what to know then."""

import asyncio
import sys
import time
from zoneinfo import ZoneInfo

from prefect.artifacts import Artifact
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from ops.stack import full_names, scheduled_deployments, waiting_runs, zone_of

DEPLOYMENT = "suggest-activity/daily"
ARTIFACT = "activity"
RUN_SECONDS = 300
SCHEDULER_SECONDS = 30  # the server looks for new deployments every five


async def main() -> int:
    """Runs, then tells; returns the exit code."""
    async with get_client() as client:
        deployment = None
        try:
            deployment = await client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            print(f"\nNo {DEPLOYMENT} here, so there is no first run to show.")
        else:
            if not await has_completed(client, deployment) and not await run():
                return 1
        await tell(client, deployment)
    return 0


async def has_completed(client: PrefectClient, deployment: DeploymentResponse) -> bool:
    """Has the deployment a run that went well?"""
    completed = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED]))
    return bool(
        await client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
            flow_run_filter=FlowRunFilter(state=completed),
            limit=1,
        )
    )


async def run() -> bool:
    """Starts a run and waits for its end; says how it went."""
    print(f"\n==> First run of {DEPLOYMENT}, in a container of its own", flush=True)
    flow_run = await arun_deployment(DEPLOYMENT, timeout=RUN_SECONDS, poll_interval=1)
    state = flow_run.state
    if state is not None and state.is_completed():
        print(f"  ok    {flow_run.name}: {state.name}")
        return True
    found = "nothing" if state is None else f"{state.name}: {state.message or 'no message'}"
    print(
        f"  FAIL  {flow_run.name}\n"
        f"        expected: Completed within {RUN_SECONDS} s\n"
        f"        found:    {found}\n"
        f"        fix:      see {get_current_settings().ui_url}/runs/flow-run/{flow_run.id} "
        "or `make logs`, then: make up",
        file=sys.stderr,
    )
    return False


async def tell(client: PrefectClient, deployment: DeploymentResponse | None) -> None:
    """Prints the address, the login, the next runs (of the deployment, if any) and the artifact."""
    settings = get_current_settings()
    secret = settings.api.auth_string
    login = f"{secret.get_secret_value()}  (all of it, in the one field)" if secret else "none"
    print("\n==> Running")
    print(f"  UI         {settings.ui_url}")
    print(f"  login      {login}")
    for number, line in enumerate(await next_runs(client, deployment)):
        print(f"  {'next runs' if number == 0 else '':<11}{line}")
    artifact = await Artifact.aget(ARTIFACT)
    if artifact is not None:
        print(f"  artifact   {ARTIFACT}\n")
        for line in str(artifact.data).splitlines():
            print(f"    {line}".rstrip())
    print("\nNext: your flow in flows/, its entry in prefect.yaml, then: make deploy")


async def next_runs(
    client: PrefectClient, deployment: DeploymentResponse | None, count: int = 3
) -> list[str]:
    """The next runs, each in its schedule's zone; waits for the scheduler where it has to."""
    scheduled = {found.id: found for found in await scheduled_deployments(client)}
    if deployment is not None and deployment.id in scheduled:
        scheduled = {deployment.id: deployment}
    else:
        deployment = None
    names = await full_names(client)
    deadline = time.monotonic() + SCHEDULER_SECONDS
    runs = await waiting_runs(client, limit=200, deployment=deployment)
    while scheduled and not runs and time.monotonic() < deadline:
        await asyncio.sleep(1)
        runs = await waiting_runs(client, limit=200, deployment=deployment)
    lines: list[str] = []
    for run in runs:
        if len(lines) < count and run.deployment_id in scheduled and run.expected_start_time:
            zone = zone_of(scheduled[run.deployment_id])
            start = run.expected_start_time.astimezone(ZoneInfo(zone))
            lines.append(f"{start:%a %Y-%m-%d %H:%M} {zone}  {names[run.deployment_id]}")
    return lines


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

"""What a running stack has to say of itself, asked of Prefect's API."""

from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort

WORKERS = {"worker": "docker-pool", "fork-worker": "fork-pool"}  # the service, its work pool


async def full_names(client: PrefectClient) -> dict[UUID, str]:
    """Every deployment's name as people write it, ``flow/deployment``, by its id."""
    flows = {flow.id: flow.name for flow in await client.read_flows()}
    return {
        deployment.id: f"{flows[deployment.flow_id]}/{deployment.name}"
        for deployment in await client.read_deployments()
    }


async def scheduled_deployments(client: PrefectClient) -> list[DeploymentResponse]:
    """The deployments that ought to have runs waiting: not paused, with an active schedule."""
    return [
        deployment
        for deployment in await client.read_deployments()
        if not deployment.paused and any(schedule.active for schedule in deployment.schedules)
    ]


async def waiting_runs(
    client: PrefectClient, limit: int, deployment: DeploymentResponse | None = None
) -> list[FlowRun]:
    """The runs that wait in the database for a time to come, the next one first.

    Args:
        client: Of the server to ask.
        limit: How many at most (200 is the server's own limit).
        deployment: Whose runs; by default everybody's.
    """
    only = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])) if deployment else None
    return await client.read_flow_runs(
        deployment_filter=only,
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            expected_start_time=FlowRunFilterExpectedStartTime(after_=datetime.now(UTC)),
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=limit,
    )


def zone_of(deployment: DeploymentResponse) -> str:
    """The zone in which a deployment's schedule is meant."""
    zones = (getattr(item.schedule, "timezone", None) for item in deployment.schedules)
    return next((zone for zone in zones if zone), "UTC")

"""Nine o'clock is nine o'clock, on the days when the clocks change, too: asked of the scheduler."""

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.stack import DAILY, Stack

INTERVAL = 21600  # seconds
# In the past, so that no run of these ever gets due; the rules are the same every year.
CHANGES = {
    "Europe/Berlin": [date(2026, 3, 29), date(2026, 10, 25)],
    "America/New_York": [date(2026, 3, 8), date(2026, 11, 1)],
}


@pytest.fixture(params=CHANGES)
def deployment(
    stack: Stack, first_run: dict[str, Any], request: pytest.FixtureRequest
) -> Iterator[tuple[str, str]]:
    """A deployment without a work pool, scheduled like those of prefect.yaml; its id and zone."""
    zone = request.param
    daily = stack.deployment(DAILY)
    snapshot = stack.deployment("users-etl/snapshot")
    [cron] = [item["schedule"]["cron"] for item in daily["schedules"]]
    [interval] = [item["schedule"] for item in snapshot["schedules"]]
    assert interval["interval"] == INTERVAL
    body = {
        "name": f"dst-{zone.replace('/', '-')}",
        "flow_id": daily["flow_id"],
        "schedules": [
            {"slug": "cron", "schedule": {"cron": cron, "timezone": zone}},
            {"slug": "interval", "schedule": {**interval, "timezone": zone}},
        ],
    }
    created = stack.api("POST", "/deployments/", body)["id"]
    yield created, zone
    stack.api("PATCH", f"/deployments/{created}", {"schedules": []})  # or more runs would come
    for run in runs(stack, created):
        stack.api("DELETE", f"/flow_runs/{run['id']}")
    stack.api("DELETE", f"/deployments/{created}")


def runs(stack: Stack, deployment: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = stack.api(
        "POST",
        "/flow_runs/filter",
        {"deployments": {"id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"},
    )
    return found


def test_change_over_days(stack: Stack, deployment: tuple[str, str]) -> None:
    created, name = deployment
    zone = ZoneInfo(name)
    found = stack.api("GET", f"/deployments/{created}")["schedules"]
    slugs = {item["id"]: item["slug"] for item in found}
    for change in CHANGES[name]:
        begin, end = (
            datetime.combine(change + timedelta(days=days), datetime.min.time(), zone)
            for days in (-2, 3)
        )
        assert begin.utcoffset() != end.utcoffset(), "the clocks change in between"
        stack.api(
            "POST",
            f"/deployments/{created}/schedule",
            {
                "start_time": begin.isoformat(),
                "end_time": end.isoformat(),
                "min_time": (end - begin).total_seconds(),
                "max_runs": 100,
            },
        )
        starts: dict[str, list[datetime]] = {"cron": [], "interval": []}
        for run in runs(stack, created):
            start = datetime.fromisoformat(run["expected_start_time"]).astimezone(zone)
            if begin <= start < end:
                starts[slugs[run["created_by"]["id"]]].append(start)

        days = [change + timedelta(days=days) for days in range(-2, 3)]
        assert [start.date() for start in starts["cron"]] == days
        assert {(start.hour, start.minute) for start in starts["cron"]} == {(9, 0)}
        # By the clock of the world, not of the wall, which leaves out an hour or shows it twice.
        utc = [start.timestamp() for start in starts["interval"]]
        assert {later - earlier for earlier, later in pairwise(utc)} == {INTERVAL}
        assert 19 <= len(utc) <= 21

"""What a daily run does when the API it asks fails: started by its deployment, in a container."""

from typing import Any

from tests.stack import ACTIVITY_URL, DAILY, Stack


def test_api_faults(stack: Stack, first_run: dict[str, Any]) -> None:
    """All at once: most of the time of each is waiting for a retry."""
    heals = stack.start(DAILY, url=f"{ACTIVITY_URL}?fault_status=500&fault_times=2&fault_key=heals")
    slow = stack.start(DAILY, url=f"{ACTIVITY_URL}?fault_delay=30&fault_times=1&fault_key=slow")
    html = stack.start(DAILY, url=f"{ACTIVITY_URL}?fault_body=not-json")
    empty = stack.start(DAILY, url=f"{ACTIVITY_URL}?type=no-such-type")
    down = stack.start(DAILY, url="http://upstream:1/api/activity")
    refused = stack.start(DAILY, url=f"{ACTIVITY_URL}?fault_status=404")

    assert stack.finished(heals)["state_type"] == "COMPLETED"
    stack.attempts(heals, {"get_random_activity": 3})
    assert stack.finished(slow)["state_type"] == "COMPLETED"
    stack.said(slow, "Read timed out")

    no_activity = "answered 200 with no activity in it"
    for run, cause in {
        html: f"{ACTIVITY_URL}?fault_body=not-json {no_activity} (body: Invalid",
        empty: f"{ACTIVITY_URL}?type=no-such-type {no_activity} (activity: Field",
        down: "Connection refused",
        refused: "404 Client Error",
    }.items():
        assert stack.finished(run)["state_type"] == "FAILED"
        stack.said(run, cause)
    # Four attempts each, but for what no retry can mend.
    for run, count in {html: 4, empty: 4, down: 4, refused: 1}.items():
        stack.attempts(run, {"get_random_activity": count})

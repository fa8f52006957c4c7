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
    tasks = stack.task_runs(heals)
    attempts = {task["name"].rsplit("-", 1)[0]: task["run_count"] for task in tasks}
    assert attempts["get_random_activity"] == 3
    assert stack.finished(slow)["state_type"] == "COMPLETED"
    assert "Read timed out" in stack.logs(slow)

    no_activity = "answered 200 with no activity in it"
    for run, cause in {
        html: f"{ACTIVITY_URL}?fault_body=not-json {no_activity} (body: Invalid",
        empty: f"{ACTIVITY_URL}?type=no-such-type {no_activity} (activity: Field",
        down: "Connection refused",
        refused: "404 Client Error",
    }.items():
        assert stack.finished(run)["state_type"] == "FAILED"
        assert cause in stack.logs(run)
    # Four attempts each, but for what no retry can mend.
    for run, count in {html: 4, empty: 4, down: 4, refused: 1}.items():
        (task,) = stack.task_runs(run)
        assert task["run_count"] == count

"""Suggests something to do: asks an HTTP API for an activity and keeps it as an artifact."""

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.futures import wait
from pydantic import BaseModel, ConfigDict, Field
from web import ASKING, Url, address, get

ARTIFACT_KEY = "activity"


class Activity(BaseModel):
    """An answer of the API. Its successors differ in all the rest, so only the core is required."""

    model_config = ConfigDict(extra="ignore")

    activity: str = Field(min_length=1)
    type: str = "unknown"
    participants: int = Field(default=1, ge=1)
    price: float | None = None
    link: str | None = None


@task(
    **ASKING,
    persist_result=True,  # a retried run goes on with the activity that it had
)
def get_random_activity(url: str) -> Activity:
    """Asks the API once."""
    return get(url, Activity, "activity")


@task
def print_activity(activity: Activity) -> None:
    """Says it in the run's log."""
    get_run_logger().info("How about this: %s", activity.activity)


@task(retries=3, retry_delay_seconds=1)
def save_activity_artifact(activity: Activity) -> None:
    """Keeps it as the markdown artifact ``activity``."""
    create_markdown_artifact(
        as_markdown(activity), key=ARTIFACT_KEY, description="What to do today"
    )


def as_markdown(activity: Activity) -> str:
    """The artifact's text."""
    lines = [
        f"# {activity.activity}",
        "",
        f"- **Type:** {activity.type}",
        f"- **Participants:** {activity.participants}",
    ]
    if activity.price is not None:
        lines.append(f"- **Price:** {'free' if activity.price == 0 else activity.price}")
    if activity.link:
        lines.append(f"- **More:** <{activity.link}>")
    return "\n".join(lines) + "\n"


@flow
def suggest_activity(url: Url = "") -> str:
    """Asks for an activity, says it and keeps it.

    Args:
        url: Where to ask; by default ACTIVITY_API_URL, or the stack's own upstream.

    Returns:
        The activity's text.
    """
    activity = get_random_activity(address(url, "ACTIVITY_API_URL", "/activity"))
    done = [print_activity.submit(activity), save_activity_artifact.submit(activity)]
    wait(done)
    for future in done:
        future.result()
    return activity.activity


if __name__ == "__main__":
    suggest_activity()

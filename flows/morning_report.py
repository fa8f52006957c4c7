"""A flow of flows: runs the others side by side and reports what worked and what did not."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

from cat_fact import cat_fact
from github_stars import github_stars
from prefect import Flow, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from suggest_activity import suggest_activity
from users_etl import users_etl

ARTIFACT_KEY = "morning-report"

SECTIONS: dict[str, Flow[..., Any]] = {
    "Something to do": suggest_activity,
    "A fact": cat_fact,
    "Stars": github_stars,
    "Users": users_etl,
}


@flow
def morning_report() -> State[None]:
    """Runs every section; one that fails doesn't keep the others from being reported.

    Returns:
        Completed if all of them were, else Failed, naming those that weren't.
    """
    with ThreadPoolExecutor(len(SECTIONS)) as threads:
        running: dict[str, Future[Any]] = {
            # A thread starts without the context that makes a flow a subflow: give it a copy.
            title: threads.submit(copy_context().run, partial(section, return_state=True))
            for title, section in SECTIONS.items()
        }
        states: dict[str, State[Any]] = {
            title: outcome(future) for title, future in running.items()
        }

    for title, state in states.items():
        get_run_logger().info("%s: %s", title, state.name)
    create_markdown_artifact(
        as_markdown(states), key=ARTIFACT_KEY, description="What worked this morning"
    )
    failed = [title for title, state in states.items() if not state.is_completed()]
    if failed:
        return Failed(message=f"{len(failed)} of {len(states)} failed: {', '.join(failed)}")
    return Completed(message=f"All {len(states)} worked")


def outcome(section: Future[State[Any]]) -> State[Any]:
    """The state it ended in, also when it couldn't be run at all."""
    if error := section.exception():
        return Failed(message=f"{type(error).__name__}: {error}")
    return section.result()


def as_markdown(states: dict[str, State[Any]]) -> str:
    """The artifact's text: a line for each section that worked, and for each that did not, why."""
    lines = ["# Morning report", ""]
    for title, state in states.items():
        if state.is_completed():
            lines.append(f"- ✅ **{title}:** {shown(state.result())}")
        else:
            reason = " ".join((state.message or "no reason given").split())
            lines.append(f"- ❌ **{title}:** {state.name}: {reason}")
    return "\n".join(lines) + "\n"


def shown(result: Any) -> str:
    """A flow's result in one line."""
    if isinstance(result, dict):
        return ", ".join(f"{key} {value}" for key, value in result.items())
    if isinstance(result, list):
        return "; ".join(map(str, result))
    return str(result)


if __name__ == "__main__":
    morning_report()

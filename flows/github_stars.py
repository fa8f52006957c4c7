"""Asks GitHub's API how many stars repositories have, and what that means."""

from typing import Annotated

from prefect import flow, get_run_logger, task, unmapped
from prefect.artifacts import create_table_artifact
from prefect.futures import wait
from pydantic import BaseModel, Field
from web import ASKING, Url, address, get

ARTIFACT_KEY = "github-stars"

# owner/name, neither of them made of dots alone: those would lead elsewhere in the API.
Name = Annotated[str, Field(pattern=r"^[\w-][\w.-]*/[\w.-]*[\w-][\w.-]*$")]
Repositories = Annotated[
    list[Name], Field(min_length=1, max_length=50, examples=[["PrefectHQ/prefect"]])
]


class Repository(BaseModel):
    """What is used of GitHub's answer."""

    full_name: str
    stargazers_count: int
    language: str | None = None


@task(
    task_run_name="get_repository-{name}",
    **ASKING,
    persist_result=True,  # a retried run asks only for what it hasn't got yet: GitHub counts
)
def get_repository(name: str, api: str) -> Repository:
    """Asks the API for one repository."""
    return get(f"{api}/repos/{name}", Repository, "repository")


@task
def celebrate(repositories: list[Repository]) -> None:
    """For those with many stars."""
    names = ", ".join(repository.full_name for repository in repositories)
    get_run_logger().info("The crowd loves %s", names)


@task
def encourage(repositories: list[Repository]) -> None:
    """For those with few."""
    get_run_logger().info("None of %d has many stars: go and give some", len(repositories))


@task(retries=3, retry_delay_seconds=1)
def save_table(repositories: list[Repository]) -> None:
    """Keeps them as the table artifact ``github-stars``, the most loved first."""
    rows = [
        {
            "repository": repository.full_name,
            "stars": repository.stargazers_count,
            "language": repository.language,
        }
        for repository in sorted(repositories, key=lambda item: -item.stargazers_count)
    ]
    create_table_artifact(rows, key=ARTIFACT_KEY, description="Stars on GitHub")


@flow
def github_stars(
    repositories: Repositories = ["PrefectHQ/prefect", "psf/requests", "pandas-dev/pandas"],  # noqa: B006 - never changed
    many: Annotated[int, Field(ge=1)] = 10_000,
    api: Url = "",
) -> dict[str, int]:
    """Tells the stars of repositories; those that can't be had fail the run, after the table.

    Args:
        repositories: Their names, owner/name.
        many: From how many stars on a repository is celebrated.
        api: GitHub's; by default GITHUB_API_URL, or the stack's own upstream.

    Returns:
        The stars by repository.
    """
    base = address(api, "GITHUB_API_URL", "").rstrip("/")
    answers = get_repository.map(repositories, api=unmapped(base))
    wait(answers)
    found = [answer.result() for answer in answers if answer.state.is_completed()]
    if found:
        save_table(found)
        loved = [repository for repository in found if repository.stargazers_count >= many]
        if loved:
            celebrate(loved)
        else:
            encourage(found)
    for answer in answers:
        answer.result()  # raises what went wrong with it
    return {repository.full_name: repository.stargazers_count for repository in found}


if __name__ == "__main__":
    github_stars()

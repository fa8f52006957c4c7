"""Extracts users from an HTTP API, transforms them into a table and loads it into a CSV file."""

import os
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any

import pandas as pd
from prefect import flow, get_run_logger, task
from pydantic import BaseModel, Field
from web import Url, address, get, worth_a_retry

COLUMNS = ["id", "name", "username", "email", "address", "phone", "company"]
ADDRESS = ["address.street", "address.suite", "address.zipcode", "address.city"]


class Address(BaseModel):
    """Where a user lives."""

    street: str
    suite: str
    city: str
    zipcode: str


class Company(BaseModel):
    """Where a user works."""

    name: str


class User(BaseModel):
    """What is used of the API's answer. Checked where it is asked for: only there a retry helps."""

    id: int
    name: str
    username: str
    email: str
    address: Address
    phone: str
    company: Company


# A folder below the data folder; no part of it begins with a dot, so none is "..".
Folder = Annotated[str, Field(pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)*$", examples=["users"])]


@task(
    tags=["api"],
    retries=10,
    retry_condition_fn=worth_a_retry,
    persist_result=True,  # a retried run goes on with the users that it had
)
def extract(url: str) -> list[dict[str, Any]]:
    """Asks the API for its list of users; an empty one is an error."""
    users = get(url, list[User], "list of users")
    if not users:
        raise ValueError(f"{url} answered 200 with an empty list, expected at least one user")
    get_run_logger().info("%d users from %s", len(users), url)
    return [user.model_dump() for user in users]


@task
def transform(users: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a user, one line an address, the company by its name."""
    table = pd.json_normalize(users)
    table["address"] = table[ADDRESS].agg(", ".join, axis="columns")
    table["company"] = table["company.name"]
    return table[COLUMNS]


@task(tags=["file"])
def load(table: pd.DataFrame, path: str) -> Path:
    """Writes users-TIMESTAMP.csv into the folder: whole or not at all, over no other file.

    Args:
        table: What to write.
        path: The folder, below DATA_DIR (by default data/).

    Returns:
        The file.

    Raises:
        ValueError: The folder is outside of DATA_DIR.
        OSError: The file can't be written; nothing of it is left.
    """
    root = Path(os.environ.get("DATA_DIR", "data")).resolve()
    folder = (root / path).resolve()
    if not folder.is_relative_to(root):
        raise ValueError(f"path: expected a folder below {root}, found {path!r}: {folder}")
    file = folder / f"users-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(
            "w", dir=folder, prefix=".", suffix=".part", encoding="utf-8"
        ) as part:
            table.to_csv(part, index=False)
            part.flush()
            os.fsync(part.fileno())
            os.chmod(part.name, 0o644)
            os.link(part.name, file)  # unlike a rename, never over another file
    except OSError as error:
        raise OSError(error.errno, f"can't write: {error.strerror}", str(file)) from None
    get_run_logger().info("%d rows in %s", len(table), file)
    return file


@flow
def users_etl(
    url: Url = "",
    path: Folder = "users",
    retry_delay_seconds: Annotated[float, Field(ge=0, le=3600)] = 30,
) -> str:
    """Keeps the users of an HTTP API as a CSV file.

    Args:
        url: Where to ask; by default USERS_API_URL, or the stack's own upstream.
        path: The folder for the file, below the data folder.
        retry_delay_seconds: How long to wait before each of the 10 retries of the request.

    Returns:
        The file's path.
    """
    users = extract.with_options(retry_delay_seconds=retry_delay_seconds)(
        address(url, "USERS_API_URL", "/users")
    )
    return str(load(transform(users), path))


if __name__ == "__main__":
    users_etl()

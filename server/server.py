"""The ``prefect`` command for a server whose database may be away for a while.

Prefect's server hears of changed automations over a connection to Postgres. One that can't be had
it takes for a database that isn't Postgres: it would never listen again.
"""

from typing import Any

from prefect.cli import app
from prefect.server.events import triggers
from prefect.server.utilities.postgres_listener import get_pg_notify_connection


async def connect_or_fail() -> Any:
    """A connection to Postgres.

    Raises:
        ConnectionError: There is none to be had now; who listens asks again in a few seconds.
    """
    connection = await get_pg_notify_connection()
    if connection is None:
        raise ConnectionError("expected Postgres to answer, found that it doesn't")
    return connection


if __name__ == "__main__":
    triggers.get_pg_notify_connection = connect_or_fail  # type: ignore[attr-defined]
    app()

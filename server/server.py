"""The ``prefect`` command for a server that people rely on: two of Prefect's habits are changed.

It hears of changed automations over a connection to Postgres. One that can't be had it takes for a
database that isn't Postgres: it would never listen again.

It gives a client that asks for a CSRF token a new one, and the old one is good no more. A client
whose requests all at once lack one, as a worker's do when it takes ten runs, asks ten times, and
nine requests come with a token of before: until none is tried again, and a run has crashed.
"""

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect.cli import app
from prefect.server.database import provide_database_interface
from prefect.server.events import triggers
from prefect.server.models import csrf_token
from prefect.server.utilities.postgres_listener import get_pg_notify_connection
from prefect.settings import get_current_settings

# A token that is about to expire is better replaced. Prefect's are good for an hour.
LEAST = timedelta(minutes=1)

read_token: Any = csrf_token.read_token_for_client  # its type is not what the decorator makes of it


async def connect_or_fail() -> Any:
    """A connection to Postgres.

    Raises:
        ConnectionError: There is none to be had now; who listens asks again in a few seconds.
    """
    connection = await get_pg_notify_connection()
    if connection is None:
        raise ConnectionError("expected Postgres to answer, found that it doesn't")
    return connection


async def token_that_stays(session: Any, client: str) -> Any:
    """The client's CSRF token: the same for all who ask, for as long as it is good."""
    db: Any = provide_database_interface()
    table, now = db.CsrfToken, datetime.now(UTC)
    good_for = get_current_settings().server.api.csrf_token_expiration
    new = {"token": secrets.token_hex(32), "expiration": now + good_for}
    is_old = table.expiration < now + LEAST
    insert = db.queries.insert(table).values(client=client, **new)
    await session.execute(
        insert.on_conflict_do_update(index_elements=[table.client], set_=new, where=is_old)
    )
    return await read_token(session=session, client=client)


if __name__ == "__main__":
    triggers.get_pg_notify_connection = connect_or_fail  # type: ignore[attr-defined]
    csrf_token.create_or_update_csrf_token = token_that_stays
    app()

"""Has the database this server's schema already? Exit code 0 if so.

Prefect's own command does nothing then, and takes seconds to find that out: at each `make up` and
`make deploy`. Whatever else is the case, it is for that command to say.
"""

import asyncio
import os
import re
import sys
from pathlib import Path
from sysconfig import get_path

import asyncpg  # type: ignore[import-untyped]

VERSIONS = "prefect/server/database/_migrations/versions/postgresql"


def heads() -> set[str]:
    """The revisions that no other one follows: alembic has both in each of its files.

    Raises:
        ValueError: A file has them in another form.
    """
    texts = [path.read_text() for path in Path(get_path("purelib"), VERSIONS).glob("*.py")]

    def named(key: str) -> set[str]:
        return {name for text in texts for name in re.findall(rf'(?m)^{key} = "(\w+)"$', text)}

    if not texts or len(named("revision")) != len(texts):
        raise ValueError(f"expected a revision in each of {VERSIONS}'s files")
    return named("revision") - named("down_revision")


async def revisions() -> set[str]:
    """What the database says of itself."""
    keys = ("HOST", "USER", "PASSWORD")
    given = {key.lower(): os.environ[f"PREFECT_SERVER_DATABASE_{key}"] for key in keys}
    database = os.environ["PREFECT_SERVER_DATABASE_NAME"]
    connection = await asyncpg.connect(**given, database=database, timeout=10)
    try:
        return {row["version_num"] for row in await connection.fetch("TABLE alembic_version")}
    finally:
        await connection.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(revisions()) != heads())

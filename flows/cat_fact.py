"""Facts about cats from an HTTP API: one after the other, and by the async twin many at a time."""

import asyncio
from typing import Annotated

import httpx
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field
from web import ASKING, DEADLINE_SECONDS, TIMEOUT_SECONDS, Url, address, get, get_async

Count = Annotated[int, Field(ge=1, le=100)]


class Fact(BaseModel):
    """An answer of the API."""

    fact: str = Field(min_length=1)


@task(
    **ASKING,
)
def get_fact(url: str) -> str:
    """Asks the API once."""
    return get(url, Fact, "fact").fact


@task(
    **ASKING,
    timeout_seconds=DEADLINE_SECONDS,
    cache_policy=NO_CACHE,  # a client can't be part of a cache's key
)
async def get_fact_async(url: str, client: httpx.AsyncClient) -> str:
    """Asks the API once, others going on meanwhile."""
    return (await get_async(client, url, Fact, "fact")).fact


@flow
def cat_fact(url: Url = "", count: Count = 1) -> list[str]:
    """Fetches facts one after the other.

    Args:
        url: Where to ask; by default FACT_API_URL, or the stack's own upstream.
        count: How many facts.

    Returns:
        The facts.
    """
    source = address(url, "FACT_API_URL", "/fact")
    facts = []
    for _ in range(count):
        facts.append(get_fact(source))
        get_run_logger().info("Did you know? %s", facts[-1])
    return facts


@flow
async def cat_fact_async(
    url: Url = "", count: Count = 10, at_once: Annotated[int, Field(ge=1, le=20)] = 5
) -> list[str]:
    """Fetches many facts concurrently.

    Args:
        url: Where to ask; by default FACT_API_URL, or the stack's own upstream.
        count: How many facts.
        at_once: How many requests there may be at any time.

    Returns:
        The facts.
    """
    source = address(url, "FACT_API_URL", "/fact")
    limit = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS[1], follow_redirects=True) as client:

        async def fetch() -> str:
            async with limit:
                return await get_fact_async(source, client)

        # Every one has ended before the client closes, also when one fails.
        answers = await asyncio.gather(*(fetch() for _ in range(count)), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    facts = [answer for answer in answers if isinstance(answer, str)]
    for fact in facts:
        get_run_logger().info("Did you know? %s", fact)
    return facts


if __name__ == "__main__":
    cat_fact()
    asyncio.run(cat_fact_async())

"""What the flows that ask an HTTP API share: a GET with its answer validated, and when to retry."""

import asyncio
import os
from time import monotonic
from typing import Annotated, Any, TypeVar

import httpx
import requests
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff
from pydantic import Field, TypeAdapter, ValidationError
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from urllib3.exceptions import HTTPError

# Empty for the default. A union with None would do, but its refusal names no reason.
Url = Annotated[str, Field(pattern=r"^$|^https?://[^\s/?#]+\S*$", examples=["https://a.example"])]
T = TypeVar("T")

UPSTREAM = "http://127.0.0.1:4280/api"  # the stack's own, as this machine sees it
NO_URL = (
    httpx.InvalidURL,
    httpx.UnsupportedProtocol,
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
)

TIMEOUT_SECONDS = (5, 10)  # to connect, to wait for the next bytes
# For all of a body, however slowly it comes: a task's own timeout can't end a request in a thread.
DEADLINE_SECONDS = 120
# Retries are the tasks' own, where the UI shows them. All that is left to HTTP is to wait for as
# long as a 429 or 503 asks for in its Retry-After (RFC 9110), within reason.
WAITS = 2
PATIENCE = Retry(total=WAITS, connect=0, read=0, other=0, raise_on_status=False, retry_after_max=30)


def address(url: str, variable: str, path: str) -> str:
    """Where to ask: the URL if there is one, else the variable's, else the stack's own upstream."""
    return url or os.environ.get(variable) or UPSTREAM + path


def get(url: str, shape: type[T], what: str) -> T:
    """Asks once and validates the answer.

    Args:
        url: Where to ask.
        shape: What the JSON has to be: a pydantic model, ``list[dict[str, Any]]``, …
        what: Its name in an error message.

    Raises:
        requests.RequestException: The API can't be reached, is slow, or answers with an error.
        ValueError: It answered with something else; names the URL and what was missing.
    """
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=PATIENCE))
        deadline = monotonic() + DEADLINE_SECONDS
        with session.get(url, timeout=TIMEOUT_SECONDS, stream=True) as response:
            response.raise_for_status()
            body = bytearray()
            try:
                while chunk := response.raw.read1(65536, decode_content=True):
                    body += chunk
                    if monotonic() > deadline:
                        raise requests.ReadTimeout(f"{url}: no end after {DEADLINE_SECONDS} s")
            except HTTPError as error:
                raise requests.ConnectionError(f"{url}: {error}") from error
    return validated(url, bytes(body), shape, what)


async def get_async(client: httpx.AsyncClient, url: str, shape: type[T], what: str) -> T:
    """The same for async flows, over a client that many requests share; raises httpx's errors."""
    response = await client.get(url)
    for _ in range(WAITS):
        after = response.headers.get("Retry-After")
        if after is None or response.status_code not in Retry.RETRY_AFTER_STATUS_CODES:
            break
        await asyncio.sleep(min(PATIENCE.parse_retry_after(after), PATIENCE.retry_after_max))
        response = await client.get(url)
    return validated(url, response.raise_for_status().content, shape, what)


def validated(url: str, body: bytes, shape: type[T], what: str) -> T:
    """The answer as `shape`; raises ValueError like `get`."""
    try:
        return TypeAdapter(shape).validate_json(body)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
            for problem in error.errors()[:5]
        )
        raise ValueError(
            f"{url} answered 200 with no {what} in it ({problems}). "
            f"The answer begins: {body[:200].decode(errors='replace')!r}"
        ) from None


def worth_a_retry(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Anything may heal but what is no URL and what the API refuses: 4xx other than 408 and 429."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, NO_URL):
        return False
    response = getattr(error, "response", None)  # requests' and httpx's errors have it alike
    return response is None or response.status_code >= 500 or response.status_code in (408, 429)


# The options of a task that asks an API: four attempts, about 2, 4 and 8 s apart.
ASKING: dict[str, Any] = {
    "tags": ["api"],
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": worth_a_retry,
}

"""Faults on request: what a client must survive, asked for in the query of any API route."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from starlette.datastructures import QueryParams
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "fault_"
TRUNCATED = "truncated"

Number = TypeVar("Number", int, float)


class Body(NamedTuple):
    """An answer that no client expects."""

    content: bytes
    media_type: str = "application/json"


BODIES = {
    "not-json": Body(b"<!doctype html><title>Oops</title><h1>Oops</h1>", "text/html"),
    "empty": Body(b""),
    "wrong-shape": Body(b'{"unexpected": []}'),
    "empty-list": Body(b"[]"),
    "incomplete": Body(b'[{"id": 1, "name": "No more than a name"}]'),
    TRUNCATED: Body(b'{"activity": "Stop in the mid'),
}


def _within(number: Callable[[str], Number], low: Number, high: Number) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        value = number(text)
        if not low <= value <= high:  # written so that nan fails too
            raise ValueError
        return value

    return parse


def _body(text: str) -> str:
    if text not in BODIES:
        raise ValueError
    return text


def _key(text: str) -> str:
    if not 1 <= len(text) <= 100:
        raise ValueError
    return text


class Parameter(NamedTuple):
    """One query parameter: what it takes, in words and in code, and what it is useless without."""

    expected: str
    parse: Callable[[str], Any]
    needs: str | None = None


PARAMETERS = {
    "fault_status": Parameter("an integer from 400 to 599", _within(int, 400, 599)),
    "fault_delay": Parameter("seconds from 0 to 120", _within(float, 0.0, 120.0)),
    "fault_body": Parameter(f"one of {', '.join(BODIES)}", _body),
    "fault_retry_after": Parameter(
        "an integer from 0 to 3600, with fault_status", _within(int, 0, 3600), "fault_status"
    ),
    "fault_times": Parameter(
        "an integer from 0 to 1000000, with fault_key", _within(int, 0, 1_000_000), "fault_key"
    ),
    "fault_key": Parameter("1 to 100 characters, with fault_times", _key, "fault_times"),
}


@dataclass(frozen=True, slots=True)
class Faults:
    """What one request asks for; each field is the parameter of that name."""

    status: int | None = None
    delay: float = 0.0
    body: str | None = None
    retry_after: int | None = None
    times: int | None = None
    key: str = ""

    @classmethod
    def parse(cls, query: QueryParams) -> "Faults":
        """Read the fault parameters of a query.

        Raises:
            ValueError: Naming everything that is wrong. A fault that is misspelt or has no effect
                must not pass for one that was survived.
        """
        values: dict[str, Any] = {}
        problems: list[str] = []
        for name, text in query.items():
            if not name.startswith(PREFIX):
                continue
            parameter = PARAMETERS.get(name)
            if parameter is None:
                problems.append(f"{name}: expected one of {', '.join(PARAMETERS)}")
                continue
            if parameter.needs is not None and parameter.needs not in query:
                problems.append(f"{name}: expected together with {parameter.needs}")
            try:
                values[name.removeprefix(PREFIX)] = parameter.parse(text)
            except ValueError:
                problems.append(f"{name}: expected {parameter.expected}, found {text!r}")
        if problems:
            raise ValueError("; ".join(problems))
        return cls(**values)


class Counter:
    """Counts requests by key, forgetting the key longest unused once there are too many."""

    def __init__(self, capacity: int) -> None:
        """Make room for as many keys as `capacity`."""
        self._capacity = capacity
        self._counts: OrderedDict[str, int] = OrderedDict()

    def add(self, key: str) -> int:
        """Count one more request with this key and return how many there have been."""
        self._counts[key] = self._counts.pop(key, 0) + 1
        if len(self._counts) > self._capacity:
            self._counts.popitem(last=False)
        return self._counts[key]


class FaultMiddleware:
    """Answers in the wrapped app's place where a request asks for a fault.

    Counts live in this process, so `fault_times` wants a server with one worker.
    """

    def __init__(self, app: ASGIApp, max_keys: int = 10_000) -> None:
        """Wrap `app`, remembering at most `max_keys` values of `fault_key`."""
        self._app = app
        self._requests = Counter(max_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        try:
            faults = Faults.parse(QueryParams(scope["query_string"]))
        except ValueError as error:
            expected = {name: parameter.expected for name, parameter in PARAMETERS.items()}
            refusal = JSONResponse({"error": str(error), "expected": expected}, status_code=400)
            await refusal(scope, receive, send)
            return

        # Counted on arrival, before any delay, so that requests in parallel each take one turn.
        if faults.times is not None and self._requests.add(faults.key) > faults.times:
            faults = Faults()

        await asyncio.sleep(faults.delay)
        answer = _answer(faults)
        if answer is None:
            await self._app(scope, receive, send)
        elif faults.body == TRUNCATED:
            await _send_half(answer, send)
        else:
            await answer(scope, receive, send)


def _answer(faults: Faults) -> Response | None:
    if faults.body is not None:
        content, media_type = BODIES[faults.body]
        answer = Response(content, status_code=faults.status or 200, media_type=media_type)
    elif faults.status is not None:
        error = {"error": f"Status {faults.status}, as asked for by fault_status"}
        answer = JSONResponse(error, status_code=faults.status)
    else:
        return None
    if faults.retry_after is not None:
        answer.headers["Retry-After"] = str(faults.retry_after)
    return answer


async def _send_half(answer: Response, send: Send) -> None:
    answer.headers["Content-Length"] = str(2 * len(answer.body))
    await send(
        {
            "type": "http.response.start",
            "status": answer.status_code,
            "headers": answer.raw_headers,
        }
    )
    # Returning while more is promised makes the server send what it has and hang up.
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})

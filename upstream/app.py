"""The HTTP API that the flows call by default: the Bored API's contract, with faults on request."""

import json
import random
from pathlib import Path
from typing import TypedDict

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from upstream.faults import FaultMiddleware


class Activity(TypedDict):
    """One suggestion, in the Bored API's shape."""

    activity: str
    type: str
    participants: int
    price: float
    link: str
    key: str
    accessibility: float


ACTIVITIES: list[Activity] = json.loads(
    Path(__file__).with_name("activities.json").read_text(encoding="utf-8")
)


async def activity(request: Request) -> JSONResponse:
    """Answer with a random activity among those that match the filters."""
    kind = request.query_params.get("type")
    participants = request.query_params.get("participants")
    try:
        count = None if participants is None else int(participants)
    except ValueError:
        return JSONResponse(
            {"error": f"participants: expected an integer, found {participants!r}"}, status_code=400
        )

    matches = [
        candidate
        for candidate in ACTIVITIES
        if kind in (None, candidate["type"]) and count in (None, candidate["participants"])
    ]
    if not matches:
        # The Bored API says this with a 200, so clients written for it look for the key.
        return JSONResponse({"error": "No activity found with the specified parameters"})
    return JSONResponse(random.choice(matches))


async def health(_: Request) -> JSONResponse:
    """Answer that the process serves requests."""
    return JSONResponse({"status": "ok"})


app = Starlette(
    routes=[
        # Outside the mount, so that no fault can make the container look unhealthy.
        Route("/health", health),
        Mount(
            "/api",
            routes=[Route("/activity", activity)],
            middleware=[Middleware(FaultMiddleware)],
        ),
    ]
)

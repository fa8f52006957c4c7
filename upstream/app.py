"""The HTTP API that the flows call by default: four public APIs' contracts, with faults on request.

They are the Bored API's, JSONPlaceholder's, catfact.ninja's and GitHub's, each as far as it goes.
"""

import json
import math
import random
from pathlib import Path
from typing import Any, TypedDict

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


class Geo(TypedDict):
    """A place in degrees, as text."""

    lat: str
    lng: str


class Address(TypedDict):
    """Where a user lives."""

    street: str
    suite: str
    city: str
    zipcode: str
    geo: Geo


class Company(TypedDict):
    """Where a user works."""

    name: str
    catchPhrase: str
    bs: str


class User(TypedDict):
    """One person, in JSONPlaceholder's shape."""

    id: int
    name: str
    username: str
    email: str
    address: Address
    phone: str
    website: str
    company: Company


class Owner(TypedDict):
    """Whose a repository is."""

    login: str


class Repository(TypedDict):
    """One repository, in a subset of the shape of GitHub's REST API."""

    id: int
    name: str
    full_name: str
    owner: Owner
    html_url: str
    description: str
    language: str
    stargazers_count: int
    forks_count: int
    open_issues_count: int
    archived: bool
    created_at: str


def _read(name: str) -> Any:
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


ACTIVITIES: list[Activity] = _read("activities.json")
USERS: list[User] = _read("users.json")
FACTS: list[str] = _read("facts.json")
REPOSITORIES: list[Repository] = _read("repositories.json")


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


async def users(_: Request) -> JSONResponse:
    """Answer with all users."""
    return JSONResponse(USERS)


async def fact(request: Request) -> JSONResponse:
    """Answer with a random fact about cats among those that are short enough."""
    max_length = request.query_params.get("max_length")
    try:
        limit = math.inf if max_length is None else int(max_length)
    except ValueError:
        return JSONResponse(
            {"error": f"max_length: expected an integer, found {max_length!r}"}, status_code=400
        )

    matches = [candidate for candidate in FACTS if len(candidate) <= limit]
    if not matches:
        # catfact.ninja says this with a 200 too.
        return JSONResponse({})
    text = random.choice(matches)
    return JSONResponse({"fact": text, "length": len(text)})


async def repository(request: Request) -> JSONResponse:
    """Answer with the repository of that owner and name, whatever their case."""
    wanted = "{owner}/{name}".format(**request.path_params).lower()
    for candidate in REPOSITORIES:
        if candidate["full_name"].lower() == wanted:
            return JSONResponse(candidate)
    return JSONResponse({"message": "Not Found"}, status_code=404)


async def health(_: Request) -> JSONResponse:
    """Answer that the process serves requests."""
    return JSONResponse({"status": "ok"})


app = Starlette(
    routes=[
        # Outside the mount, so that no fault can make the container look unhealthy.
        Route("/health", health),
        Mount(
            "/api",
            routes=[
                Route("/activity", activity),
                Route("/users", users),
                Route("/fact", fact),
                Route("/repos/{owner}/{name}", repository),
            ],
            middleware=[Middleware(FaultMiddleware)],
        ),
    ]
)

"""The gate: an HTTP server on a Unix socket, and behind it the engine's: `gate ENGINE SOCKET`.

A path is compared as it was sent, with nothing decoded; query and body are made anew. So nothing
gets to the engine that isn't written down here or in `policy`.
"""

import asyncio
import json
import logging
import os
import re
import signal
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, quote

from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector, web

from .policy import (
    GATE_LABEL,
    MAX_BODY,
    RUN_LABEL,
    Policy,
    Refused,
    container_name,
    flow_container,
    parse,
)

# The one that the policy was written for (engine 25); older ones take other fields elsewhere.
API = "/v1.44"
KNOWN = 10_000  # containers of which it is remembered whose they are
BODIES = 16  # in its memory at a time
BODY_SECONDS = 10

ID, BOOL = r"([0-9a-f]{64})", r"0|1|[Tt]rue|[Ff]alse"
IMAGE_PATH = r"([a-z0-9][a-z0-9._/:@-]*)"
Query = dict[str, str]
Handler = Callable[["Gate", web.BaseRequest, str, Query], Awaitable[web.StreamResponse]]

log = logging.getLogger("gate")


class Gate:
    """What stands between a worker and the engine."""

    def __init__(self, policy: Policy, engine: str) -> None:
        """Takes the rules and the engine's socket."""
        self.policy = policy
        self._socket = engine
        self._ours: OrderedDict[str, None] = OrderedDict()
        self.bodies = asyncio.Semaphore(BODIES)

    async def __aenter__(self) -> "Gate":
        """Makes ready to ask the engine."""
        # As many connections as there are containers to wait for, and for as long.
        self.engine = ClientSession(
            "http://docker",
            connector=UnixConnector(self._socket, limit=0),
            timeout=ClientTimeout(total=None),
            auto_decompress=False,
            read_bufsize=1 << 14,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes what is open to the engine."""
        await self.engine.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers a request, or says why not."""
        try:
            call, argument, query = await self._route(request)
            return await call(self, request, argument, query)
        except Refused as error:
            log.warning("refused %s %s: %s", request.method, request.raw_path[:200], error)
            return answer(403, str(error))
        except web.HTTPException as error:  # aiohttp's own: a body that is too large
            log.warning("refused %s %s: %s", request.method, request.raw_path[:200], error)
            return answer(error.status, error.reason)
        except ClientError as error:
            log.warning("%s %s: %s", request.method, request.raw_path[:200], error)
            return answer(502, f"The Docker engine doesn't answer: {error}")

    async def _route(self, request: web.BaseRequest) -> tuple[Handler, str, Query]:
        path, _, text = request.raw_path.partition("?")
        for header in ("Upgrade", "Transfer-Encoding", "Content-Encoding", "Expect"):
            if header in request.headers:
                raise Refused("the request", f"no {header}", request.headers[header])
        for method, pattern, allowed, call in ROUTES:
            match = re.fullmatch(rf"(?:/v1\.\d\d)?{pattern}", path, re.A)
            if not match or method != request.method:
                continue
            if request.content_length and call not in (create, log_in):
                raise Refused("the request", "no body", f"{request.content_length} bytes")
            return call, match[1] if match.groups() else path, read_query(text, allowed)
        asked = f"{request.method} {path}"
        raise Refused("the request", "what a worker needs of the engine", asked)

    async def own(self, container: str) -> None:
        """Refuses a container that it hasn't made."""
        if container in self._ours:
            return
        async with self.engine.get(f"{API}/containers/{container}/json") as response:
            if response.status == 404:
                return  # the engine says so once more
            if response.status != 200:
                raise ClientError(f"status {response.status} of container {container[:12]}")
            labels = (await response.json())["Config"]["Labels"] or {}
        if labels.get(GATE_LABEL) != self.policy.network:
            raise Refused("container", "a flow run's of this stack", container[:12])
        self.remember(container)

    def remember(self, container: str) -> None:
        """Notes that a container is one of its own."""
        self._ours[container] = None
        if len(self._ours) > KNOWN:
            self._ours.popitem(last=False)

    async def forward(
        self, request: web.BaseRequest, path: str, query: Query, **options: Any
    ) -> web.StreamResponse:
        """Asks the engine, and passes its answer on as it comes."""
        async with self.engine.request(
            request.method, API + path, params=query, **options
        ) as answered:
            response = web.StreamResponse(status=answered.status)
            response.content_length = answered.content_length
            response.content_type = answered.content_type
            await response.prepare(request)
            try:
                async for chunk in answered.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
            except ClientError:  # half an answer: its reader must not take it for a whole one
                if request.transport:
                    request.transport.abort()
            return response


def answer(status: int, message: str) -> web.Response:
    """An error in the engine's own form."""
    return web.json_response({"message": message}, status=status)


def read_query(text: str, allowed: dict[str, str]) -> Query:
    """What is asked for after the `?`: each key once, and just as the route has it.

    Raises:
        Refused: Something else is.
    """
    options: dict[str, Any] = {"encoding": "ascii", "errors": "strict", "max_num_fields": 12}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), **options)
    except ValueError as error:
        raise Refused("the request", "a query", str(error)) from None
    query = dict(pairs)
    if len(query) < len(pairs):
        raise Refused("the request", "each key once", text)
    for key, value in query.items():
        if key not in allowed:
            raise Refused(f"the request's {key}", "it not to be set", value)
        if not re.fullmatch(allowed[key], value, re.A):
            raise Refused(f"the request's {key}", f"what matches {allowed[key]}", value)
    return query


# ── What may be asked for ──


def fixed(path: str) -> Handler:
    """What needs no more than a path."""

    async def call(
        gate: Gate, request: web.BaseRequest, _: str, query: Query
    ) -> web.StreamResponse:
        return await gate.forward(request, path, query)

    return call


async def list_own(
    gate: Gate, request: web.BaseRequest, _: str, query: Query
) -> web.StreamResponse:
    """The containers that it has made, and of these by Prefect's labels."""
    filters = parse(query.get("filters", "{}").encode())
    labels = filters.pop("label", [])
    if filters or type(labels) is not list:
        raise Refused("the request's filters", "labels", filters or labels)
    for label in labels:
        if type(label) is not str or not re.fullmatch(r"io\.prefect\.[\w.-]+(=[\w.-]*)?", label):
            raise Refused("the request's filters", "labels of Prefect's", label)
    own = {"label": [f"{GATE_LABEL}={gate.policy.network}", *labels]}
    asked = {"all": query.get("all", "0"), "filters": json.dumps(own)}
    return await gate.forward(request, "/containers/json", asked)


async def create(gate: Gate, request: web.BaseRequest, _: str, query: Query) -> web.StreamResponse:
    """Makes a flow container, by the rules."""
    async with gate.bodies:
        asked = parse(await body_of(request))
        try:
            body = flow_container(asked, gate.policy)
            named = {"name": container_name(query["name"])} if "name" in query else {}
        except Refused:
            labels = asked.get("Labels")
            run = labels.get(RUN_LABEL) if isinstance(labels, dict) else None
            log.warning("flow run %.64r:", run)
            raise
        path = f"{API}/containers/create"
        async with gate.engine.post(path, params=named, json=body) as answered:
            found = await answered.json()
    if answered.status == 201:
        gate.remember(found["Id"])
    return web.json_response(found, status=answered.status)


async def body_of(request: web.BaseRequest) -> bytes:
    """A request's body; none that is too large, or never ends, is waited for.

    Raises:
        Refused: It is.
    """
    size = request.content_length
    if not size or size > MAX_BODY:
        raise Refused("the request", f"a body of at most {MAX_BODY} bytes", size or "none")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise Refused("the request", f"its {size} bytes in {BODY_SECONDS} s", "fewer") from None


async def see_network(
    gate: Gate, request: web.BaseRequest, network: str, query: Query
) -> web.StreamResponse:
    """What a worker asks before it puts a container on one more network."""
    raise Refused("networks", f"none but {gate.policy.network}, as by default", network)


def of_container(path: str) -> Handler:
    """What is done with a container: one of its own."""

    async def call(
        gate: Gate, request: web.BaseRequest, container: str, query: Query
    ) -> web.StreamResponse:
        await gate.own(container)
        return await gate.forward(request, path.format(container), query)

    return call


def facts_of(image: str) -> str:
    """Where the engine tells an image's facts."""
    return f"/images/{quote(image, safe='/:@')}/json"


async def see_image(
    gate: Gate, request: web.BaseRequest, image: str, query: Query
) -> web.StreamResponse:
    """An image's facts."""
    gate.policy.check_image(image)
    return await gate.forward(request, facts_of(image), query)


async def pull(gate: Gate, request: web.BaseRequest, _: str, query: Query) -> web.StreamResponse:
    """Has the engine pull an image of somebody else's."""
    name, tag = query.get("fromImage", ""), query.get("tag", "")
    image = f"{name}@{tag}" if tag.startswith("sha256:") else f"{name}:{tag}"
    gate.policy.check_image(image)
    async with gate.engine.get(API + facts_of(image)) as response:
        # Somebody else may have that name at a registry.
        if response.status == 200 and not (await response.json()).get("RepoDigests"):
            raise Refused("image", "no pull of what was built here (image_pull_policy)", image)
    headers = {}
    if login := request.headers.get("X-Registry-Auth"):
        headers["X-Registry-Auth"] = login
    return await gate.forward(request, "/images/create", query, headers=headers)


async def log_in(gate: Gate, request: web.BaseRequest, _: str, query: Query) -> web.StreamResponse:
    """Has the engine look whether a login to a registry is good: one of a listed image's."""
    async with gate.bodies:
        asked = parse(await body_of(request))
    registry = asked.get("serveraddress")
    if type(registry) is not str or registry not in gate.policy.registries():
        raise Refused("registry", "that of an image on FLOW_IMAGES", registry)
    kept = {key: asked[key] for key in ("username", "password", "serveraddress") if key in asked}
    if wrong := [key for key, value in kept.items() if type(value) is not str]:
        raise Refused(wrong[0], "text", "something else")
    return await gate.forward(request, "/auth", query, json=kept)


SINCE = r"\d{1,10}(\.\d{1,9})?"
LOGS = dict.fromkeys(("stdout", "stderr", "follow", "timestamps"), BOOL)
LOGS |= {"tail": r"all|\d{1,6}", "since": SINCE, "until": SINCE}
WAIT = {"condition": r"not-running|next-exit|removed"}
KILL = {"signal": r"[A-Z0-9]{1,10}"}
REMOVE = {"v": BOOL, "force": BOOL, "link": r"[Ff]alse|0"}
PULL = {"fromImage": IMAGE_PATH, "tag": r"[\w.:-]{1,128}"}
# The last three are what Docker's client sends along.
LIST = {"all": BOOL, "filters": r".{2,2000}", "limit": "-1", "size": "0", "trunc_cmd": "0"}
ROUTES: list[tuple[str, str, Query, Handler]] = [
    ("GET", r"/_ping", {}, fixed("/_ping")),
    ("GET", r"/version", {}, fixed("/version")),
    ("GET", r"/containers/json", LIST, list_own),
    ("POST", r"/containers/create", {"name": r".{1,200}"}, create),
    ("GET", rf"/containers/{ID}/json", {}, of_container("/containers/{}/json")),
    ("GET", rf"/containers/{ID}/logs", LOGS, of_container("/containers/{}/logs")),
    ("POST", rf"/containers/{ID}/start", {}, of_container("/containers/{}/start")),
    ("POST", rf"/containers/{ID}/wait", WAIT, of_container("/containers/{}/wait")),
    ("POST", rf"/containers/{ID}/stop", {"t": r"\d{1,4}"}, of_container("/containers/{}/stop")),
    ("POST", rf"/containers/{ID}/kill", KILL, of_container("/containers/{}/kill")),
    ("DELETE", rf"/containers/{ID}", REMOVE, of_container("/containers/{}")),
    ("GET", r"/networks/([\w.-]+)", {}, see_network),
    ("GET", rf"/images/{IMAGE_PATH}/json", {}, see_image),
    ("POST", r"/images/create", PULL, pull),
    ("POST", r"/auth", {}, log_in),
]


async def serve(policy: Policy, engine: str, socket: str) -> None:
    """Listens on a Unix socket, of the own user's alone, until it is told to end."""
    os.umask(0o177)
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    async with Gate(policy, engine) as gate:
        # Whoever goes away while a container is waited for takes the engine's part with him.
        runner = web.ServerRunner(
            web.Server(
                gate.handle, access_log=None, handler_cancellation=True, read_bufsize=1 << 14
            ),
            shutdown_timeout=1,
        )
        await runner.setup()
        await web.UnixSite(runner, socket).start()
        log.info("The gate is open: images %s, volumes %s", policy.images, policy.volumes)
        await end.wait()
        await runner.cleanup()


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    try:
        rules = Policy.read(os.environ)
    except (KeyError, ValueError) as error:
        sys.exit(f"gate: {error}; fix: .env, then: make up")
    asyncio.run(serve(rules, *sys.argv[1:]))

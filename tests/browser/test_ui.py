"""The UI in a real browser: Debian's Chromium, in a container beside the stack.

The tests themselves are in `ui.py`; here each becomes a test of the host's. With SCREENSHOTS=1 the
pictures they take go to docs/images/, where the README has them from.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from testcontainers.core.container import DockerContainer

from tests.browser.chromium import BUILD_SECONDS, SECONDS, TESTS, build, container, look
from tests.stack import Stack

pytestmark = pytest.mark.timeout(BUILD_SECONDS + SECONDS)  # the first test waits for the image


@pytest.fixture(scope="module")
def browser(stack: Stack, first_run: dict[str, Any]) -> Iterator[DockerContainer]:
    """Chromium on the network of the flows."""
    left_by_run = {"flow_run_id": {"any_": [first_run["id"]]}, "key": {"any_": ["activity"]}}
    [artifact] = stack.api("POST", "/artifacts/filter", {"artifacts": left_by_run})
    env = {
        "UI_URL": "http://server:4200",
        "UI_LOGIN": stack.login,
        "RUN_NAME": first_run["name"],
        "ARTIFACT_ID": artifact["id"],
        "EXPECTED_ACTIVITY": artifact["data"],
    }
    with container(build(stack), env, network=stack.flows_network) as browser:
        yield browser


@pytest.mark.parametrize("test", TESTS)
def test_ui(stack: Stack, browser: DockerContainer, test: str) -> None:
    look(stack, browser, test)

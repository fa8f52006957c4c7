"""What all tests share: one stack of their own a session, and evidence when something fails."""

import os
import secrets
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stack import DAILY, EVIDENCE, PROJECT, Stack, bystanders, left_behind, settings_of


@pytest.fixture(scope="session", autouse=True)
def _our_environment() -> None:
    """A user's own settings must not lead a test to the user's own stack."""
    for key in settings_of(PROJECT / ".env.example"):
        os.environ.pop(key, None)
    # Nor must the `make` that runs the tests be heard in those that they run.
    for key in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        os.environ.pop(key, None)
    # Whoever runs the tests in the background has these ignored, by all that they start.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # testcontainers' own reaper is an image of a registry's; our fixtures clean up themselves.
    os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"


@pytest.fixture(scope="session")
def stack(_our_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack, brought up from a copy of the project under its own name and ports.

    At the end `make destroy` has to leave nothing of it, and every other container on this machine
    (a user's running stack) as it was.
    """
    others = bystanders()
    stack = Stack(tmp_path_factory.mktemp("project"), f"test-{secrets.token_hex(3)}")
    stack.settings["FLOW_VOLUMES"] = f"{stack.project}-full"
    try:
        stack.make("images", env=stack.settings)
        with stack.compose:
            yield stack
            stack.make("destroy", env={"YES": "1"})
        assert left_behind(stack.project) == []
        assert others.items() <= bystanders().items()
    finally:
        stack.remove()


@pytest.fixture(scope="session")
def first_run(stack: Stack) -> dict[str, Any]:
    """A completed run of the daily deployment, brought about by `make up`."""
    output = stack.make("up")
    assert "==> Running" in output
    return stack.runs(DAILY)[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Leaves what the stack had to say beside a failure, and names the folder in the report."""
    report = yield
    if report.failed and isinstance(stack := getattr(item, "funcargs", {}).get("stack"), Stack):
        folder = EVIDENCE / item.name.replace("/", "_")
        shutil.rmtree(folder, ignore_errors=True)
        stack.leave_evidence(folder)
        report.sections.append(("evidence", str(folder)))
    return report


@pytest.fixture
def project_copy(tmp_path: Path) -> Stack:
    """A copy of the project with settings of its own; nothing of it runs."""
    return Stack(tmp_path, f"test-{secrets.token_hex(3)}")

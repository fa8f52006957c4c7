"""Debian's Chromium in a container beside the stack, which runs the tests of `ui.py`."""

import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from testcontainers.core.container import DockerContainer, ExecConfig

from tests.stack import PROJECT, Stack, settings_of

TESTS = re.findall(r"^def (test_\w+)", Path(__file__).with_name("ui.py").read_text(), re.MULTILINE)
TALKING = "test_a_log_comes_in_while_the_run_goes_on"
FACT_URL = "http://upstream:8000/api/fact"  # as the fork worker sees it
EVIDENCE = PROJECT / "test-evidence" / "browser"
IMAGES = PROJECT / "docs" / "images"
SCRATCH = "/tmp"  # noqa: S108 - the container's, not this machine's
BUILD_SECONDS = 500
SECONDS = 120


def build(stack: Stack) -> str:
    """Builds the browser's image.

    Returns:
        Its name; a label makes it the stack's, which takes it along when it goes.
    """
    tag = f"{stack.project}-browser:local"
    command = ["docker", "build", "--quiet", "--file", "tests/browser/Dockerfile", "--tag", tag]
    command += ["--label", f"com.docker.compose.project={stack.project}"]
    bundle = Path(settings_of(stack.folder / ".env").get("CA_BUNDLE", ""))
    if bundle.is_file() and bundle.stat().st_size:
        command += ["--secret", f"id=ca_bundle,src={bundle}"]
    built = subprocess.run(
        [*command, "."],
        cwd=stack.folder,
        timeout=BUILD_SECONDS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert built.returncode == 0, built.stdout
    return tag


def container(image: str, env: dict[str, str], **options: Any) -> DockerContainer:
    """A container with Chromium and `ui.py`, not started yet, which waits to be asked.

    Args:
        image: What `build` made.
        env: What `ui.py` wants to know.
        options: Of docker-py's `containers.run`: network, …
    """
    return (
        DockerContainer(image, env=env)
        .with_tmpfs_mount(SCRATCH)
        .with_kwargs(
            init=True,
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            mem_limit="2g",
            pids_limit=512,
            **options,
        )
    )


def look(stack: Stack, browser: DockerContainer, test: str) -> None:
    """Runs a test of `ui.py`; where it fails, leaves what the page showed as evidence."""
    shots = f"{SCRATCH}/{test}"
    env = {"SHOTS": shots}
    talking = None
    if test == TALKING:  # every two seconds, until it is cancelled
        url = f"{FACT_URL}?fault_delay=2"
        talking = env["TALKING_RUN"] = stack.start("cat-fact/on-demand", url=url, count=100)
    command = ["timeout", str(SECONDS), "pytest", "-p", "no:cacheprovider", f"ui.py::{test}"]
    done = browser.exec(ExecConfig(command, environment=env))
    if talking:
        cancelling = {"state": {"type": "CANCELLING"}}
        stack.api("POST", f"/flow_runs/{talking}/set_state", cancelling)
        assert stack.finished(talking)["state_type"] == "CANCELLED"
    output = done.output.decode()
    if done.exit_code != 0:
        evidence = EVIDENCE / test
        shutil.rmtree(evidence, ignore_errors=True)
        copy(browser, shots, evidence)
        (evidence / "output.txt").write_text(output)
        pytest.fail(f"{test} in the browser: exit code {done.exit_code}, see {evidence}\n{output}")
    if os.environ.get("SCREENSHOTS") == "1":
        copy(browser, shots, IMAGES)


def copy(browser: DockerContainer, source: str, target: Path) -> None:
    """Copies a folder's files out of the container (by tar: `docker cp` doesn't see a tmpfs)."""
    target.mkdir(parents=True, exist_ok=True)
    done = browser.exec(["tar", "--create", "--directory", source, "."])
    if done.exit_code != 0:
        return  # no such folder: the test failed before its first picture
    with tarfile.open(fileobj=io.BytesIO(done.output)) as archive:
        for member in archive:
            if file := archive.extractfile(member):
                (target / Path(member.name).name).write_bytes(file.read())

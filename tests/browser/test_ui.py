"""The UI in a real browser: Debian's Chromium, in a container beside the stack.

The tests themselves are in `ui.py`; here each becomes a test of the host's. With SCREENSHOTS=1 the
pictures they take go to docs/images/, where the README has them from.
"""

import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testcontainers.core.container import DockerContainer, ExecConfig

from tests.stack import PROJECT, Stack, settings_of

TESTS = re.findall(r"^def (test_\w+)", Path(__file__).with_name("ui.py").read_text(), re.MULTILINE)
EVIDENCE = PROJECT / "test-evidence" / "browser"
IMAGES = PROJECT / "docs" / "images"
SCRATCH = "/tmp"  # noqa: S108 - the container's, not this machine's
BUILD_SECONDS = 500
SECONDS = 120

pytestmark = pytest.mark.timeout(BUILD_SECONDS + SECONDS)  # the first test waits for the image


@pytest.fixture(scope="module")
def image(stack: Stack) -> str:
    """The browser's image; its label makes it the stack's, which takes it along when it goes."""
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


@pytest.fixture(scope="module")
def browser(stack: Stack, first_run: dict[str, Any], image: str) -> Iterator[DockerContainer]:
    """A container with Chromium and `ui.py`, on the network of the flows; waits to be asked."""
    left_by_run = {"flow_run_id": {"any_": [first_run["id"]]}, "key": {"any_": ["activity"]}}
    [artifact] = stack.api("POST", "/artifacts/filter", {"artifacts": left_by_run})
    container = DockerContainer(
        image,
        env={
            "UI_URL": "http://server:4200",
            "UI_LOGIN": stack.login,
            "RUN_NAME": first_run["name"],
            "ARTIFACT_ID": artifact["id"],
            "EXPECTED_ACTIVITY": artifact["data"],
        },
    )
    container.with_tmpfs_mount(SCRATCH).with_kwargs(
        network=stack.flows_network,
        init=True,
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        mem_limit="2g",
        pids_limit=512,
    )
    with container:
        yield container


@pytest.mark.parametrize("test", TESTS)
def test_ui(browser: DockerContainer, test: str) -> None:
    shots = f"{SCRATCH}/{test}"
    command = ["timeout", str(SECONDS), "pytest", "-p", "no:cacheprovider", f"ui.py::{test}"]
    done = browser.exec(ExecConfig(command, environment={"SHOTS": shots}))
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

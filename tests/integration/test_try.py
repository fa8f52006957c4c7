"""make try: for a newcomer without Docker."""

import os

import pytest

from tests.stack import Stack

pytestmark = pytest.mark.timeout(900)  # all packages may have to be fetched


def test_a_look_without_docker(project_copy: Stack) -> None:
    bin_folder = project_copy.folder / "bin"
    bin_folder.mkdir()
    called = project_copy.folder / "docker-was-called"
    shim = bin_folder / "docker"
    shim.write_text(f"#!/bin/sh\ntouch {called}\nexit 127\n")
    shim.chmod(0o755)
    # A stack that was here once, and one elsewhere: neither is to be talked to.
    (project_copy.folder / ".env").write_text("PREFECT_API_URL=http://127.0.0.1:1/api\n")
    environment = {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "DOCKER_HOST": "unix:///nowhere",
        "PREFECT_API_URL": "http://127.0.0.1:1/api",
    }
    output = project_copy.make("try", env=environment)
    assert "Finished in state Completed()" in output
    artifact = output.split("==> Its artifact, activity\n")[1]
    assert artifact.lstrip().startswith("# ")
    assert "- **Type:** " in artifact
    assert not called.exists()

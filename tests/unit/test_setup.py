"""setup/: .env is written once, completely and privately; secrets reach processes as files."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from tests.stack import Stack, settings_of

# What setup/env.sh would ask Docker for.
MACHINE = {
    "COMPOSE_PROJECT_NAME": "test-setup",
    "DOCKER_SOCKET": "/var/run/docker.sock",
    "DOCKER_GID": "999",
}
SECRETS = ("PREFECT_API_AUTH_STRING", "POSTGRES_PASSWORD", "PREFECT_SERVER_ENCRYPTION_KEY")


def test_env_is_written_once_with_secrets_of_its_own(project_copy: Stack) -> None:
    path = project_copy.folder / ".env"
    project_copy.run("setup/env.sh", env={"PREFECT_PORT": "4711", **MACHINE})
    first = path.read_text()
    values = settings_of(path)
    assert values.keys() == settings_of(project_copy.folder / ".env.example").keys()
    assert values["PREFECT_PORT"] == "4711"
    assert values["DOCKER_GID"] == "999"
    assert all(len(values[key]) >= 30 for key in SECRETS)
    Fernet(values["PREFECT_SERVER_ENCRYPTION_KEY"])
    assert path.stat().st_mode & 0o777 == 0o600

    project_copy.run("setup/env.sh", env={"PREFECT_PORT": "4712", **MACHINE})
    assert path.read_text() == first
    assert not list(project_copy.folder.glob(".env.??????"))

    # .env lost: the stack's secrets are still where the containers have them from.
    path.unlink()
    project_copy.run("setup/env.sh", env=MACHINE)
    assert [settings_of(path)[key] for key in SECRETS] == [values[key] for key in SECRETS]

    path.unlink()
    shutil.rmtree(project_copy.folder / ".secrets")
    project_copy.run("setup/env.sh", env=MACHINE)
    again = settings_of(path)
    assert not [key for key in SECRETS if again[key] == values[key]]


def test_another_servers_address_is_not_taken_over(project_copy: Stack) -> None:
    project_copy.run("setup/env.sh", env={"PREFECT_API_URL": "http://elsewhere/api", **MACHINE})
    url = settings_of(project_copy.folder / ".env")["PREFECT_API_URL"]
    assert url == "http://127.0.0.1:${PREFECT_PORT}/api"


def test_secret_files_follow_env_in_a_closed_folder(project_copy: Stack) -> None:
    project_copy.run("setup/env.sh", env=MACHINE)
    folder = project_copy.folder / ".secrets"
    values = settings_of(project_copy.folder / ".env")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "api_auth_string").read_text() == values["PREFECT_API_AUTH_STRING"]
    assert (folder / "postgres_password").read_text() == values["POSTGRES_PASSWORD"]
    assert (folder / "encryption_key").read_text() == values["PREFECT_SERVER_ENCRYPTION_KEY"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


ENTRYPOINT = str(Path(__file__).parents[2] / "setup/image/entrypoint.sh")


def test_entrypoint_leaves_other_files_alone(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "PREFECT_API_SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    done = subprocess.run([ENTRYPOINT, "env"], env=env, capture_output=True, text=True)
    assert done.returncode == 0
    assert f"PREFECT_API_SSL_CERT_FILE={tmp_path}/ca.pem" in done.stdout


def test_entrypoint_refuses_a_secret_that_is_not_there() -> None:
    env = {"PATH": "/usr/bin:/bin", "PREFECT_API_AUTH_STRING_FILE": "/run/secrets/nowhere"}
    done = subprocess.run([ENTRYPOINT, "env"], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "PREFECT_API_AUTH_STRING: expected a value in /run/secrets/nowhere" in done.stderr


@pytest.mark.parametrize("target", ["help", ""])
def test_help_lists_every_verb(project_copy: Stack, target: str) -> None:
    output = project_copy.make(*filter(None, [target]))
    for verb in [
        "up",
        "down",
        "destroy",
        "deploy",
        "run",
        "backup",
        "restore",
        "upgrade",
        "status",
        "logs",
        "engine",
        "images",
        "test",
        "lint",
    ]:
        assert f"make {verb} " in output

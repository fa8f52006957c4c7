"""setup/: .env is written once, completely and privately; secrets reach processes as files."""

import os
import re
import shutil
import signal
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


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGPIPE", "SIGTERM"])
def test_an_interrupted_script_finds_its_way_back_without_a_terminal(
    project_copy: Stack, name: str
) -> None:
    script = """
        set -eu
        . setup/lib.sh
        leave() {
          code=$?
          uninterruptible
          announce "Going back"
          say "is heard nowhere"
          say "nor here" >&2
          touch back
          exit "$code"
        }
        trap leave EXIT
        interruptible
        say ready
        while :; do sleep 0.1; done
    """
    terminal, inside = os.openpty()
    with subprocess.Popen(
        ["sh", "-c", script],
        cwd=project_copy.folder,
        stdin=subprocess.DEVNULL,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    ) as process:
        os.close(inside)
        assert os.read(terminal, 5) == b"ready"
        os.close(terminal)
        os.killpg(process.pid, signal.Signals[name])
    assert process.returncode == 130
    assert (project_copy.folder / "back").exists()


def git(stack: Stack, *command: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
    done = stack.run("git", *identity, *command)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


def revisions(stack: Stack) -> dict[str, str]:
    """What the labels of each image say of its commit."""
    images = ("SERVER", "FLOW", "WORKER", "UPSTREAM", "GATE", "FIREWALL", "PROXY")
    variables = " ".join(f"{image}_REVISION" for image in images)
    done = stack.run("sh", "-c", f". setup/lib.sh; label_images; printenv {variables}")
    assert done.returncode == 0, done.stdout
    return dict(zip(images, done.stdout.split(), strict=True))


def test_an_images_revision_is_the_last_commit_of_its_own_sources(project_copy: Stack) -> None:
    assert set(revisions(project_copy).values()) == {"unknown"}  # from a tarball
    git(project_copy, "init", "--quiet")
    assert set(revisions(project_copy).values()) == {"unknown"}
    git(project_copy, "add", "--all")
    git(project_copy, "commit", "--quiet", "--message=first")
    first = git(project_copy, "rev-parse", "HEAD")
    before = revisions(project_copy)
    assert set(before.values()) == {first}

    for name in ("README.md", "docs/decisions.md", "ops/status.sh", "tests/stack.py"):
        path = project_copy.folder / name
        path.write_text(path.read_text() + "\n")
    assert revisions(project_copy) == before
    git(project_copy, "commit", "--quiet", "--all", "--message=docs")
    assert revisions(project_copy) == before

    (project_copy.folder / "flows/mine.py").write_text("")
    assert revisions(project_copy) == before | {"FLOW": f"{first}-modified"}
    git(project_copy, "add", "flows")
    git(project_copy, "commit", "--quiet", "--message=a flow")
    assert revisions(project_copy) == before | {"FLOW": git(project_copy, "rev-parse", "HEAD")}


def test_an_images_revision_knows_all_that_its_dockerfile_takes(project_copy: Stack) -> None:
    git(project_copy, "init", "--quiet")
    git(project_copy, "add", "--all")
    git(project_copy, "commit", "--quiet", "--message=first")
    stages = {
        "SERVER": ("server", r".*"),
        "FLOW": ("worker", r"python|build|runtime|flow"),
        "WORKER": ("worker", r"python|build|runtime|worker"),
        "UPSTREAM": ("upstream", r".*"),
        "GATE": ("gate", r".*"),
        "FIREWALL": ("firewall", r".*"),
        "PROXY": ("proxy", r".*"),
    }
    for image, (folder, wanted) in stages.items():
        dockerfile = (project_copy.folder / folder / "Dockerfile").read_text()
        sources = {f"{folder}/Dockerfile"}
        for stage in re.split(r"^FROM ", dockerfile, flags=re.M)[1:]:
            name = re.match(r"\S+(?: AS (\S+))?", stage)
            if name and re.fullmatch(wanted, name[1] or ""):
                sources |= set(re.findall(r"type=bind,source=([^,\s]+)", stage))
                for copied in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", stage, re.M):
                    sources |= set(copied.split())
        assert len(sources) > 2
        for source in sources:
            path = min(project_copy.folder.glob(source))
            if path.is_dir():
                path = next(found for found in sorted(path.rglob("*.py")))
            before = path.read_bytes()
            path.write_bytes(before + b"\n")
            assert revisions(project_copy)[image].endswith("-modified"), f"{image}: {source}"
            path.write_bytes(before)


@pytest.mark.parametrize(
    ("remote", "source"),
    [
        ("https://me:secret@git.example.org/stack.git", "https://git.example.org/stack.git"),
        ("git@git.example.org:stack.git", "prefect-stack"),
        ("", "prefect-stack"),
    ],
)
def test_an_images_source_is_an_address_without_a_login(
    project_copy: Stack, remote: str, source: str
) -> None:
    git(project_copy, "init", "--quiet")
    git(project_copy, "add", "pyproject.toml")
    git(project_copy, "commit", "--quiet", "--message=first")
    if remote:
        git(project_copy, "remote", "add", "origin", remote)
    done = project_copy.run("sh", "-c", ". setup/lib.sh; label_images; printenv IMAGE_SOURCE")
    assert done.stdout.strip() == source

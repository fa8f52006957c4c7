"""docs/your-own-flow.md, literally: every file is written and every command run as it stands."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.stack import PROJECT, Stack, docker

DOC = PROJECT / "docs/your-own-flow.md"
BLOCK = re.compile(r"(?P<before>[^\n]*)\n\n```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
FILE = re.compile(r"`(?P<name>[\w./-]+)`:$")
IMAGE = "prefect-stack-history:1"
pytestmark = pytest.mark.timeout(900)
TOUCHED = ["prefect.yaml", "pyproject.toml", "uv.lock"]


class Step(NamedTuple):
    """A block of the page: a command, a new file, or what is added to one."""

    kind: str
    text: str
    file: str | None


def steps() -> list[Step]:
    """The page's blocks; the line before each names the file, but for commands."""
    found = []
    for block in BLOCK.finditer(DOC.read_text()):
        named = FILE.search(block["before"])
        found.append(Step(block["kind"], block["text"], named["name"] if named else None))
    return found


@pytest.fixture
def project(stack: Stack, first_run: dict[str, Any]) -> Iterator[Stack]:
    """The stack; its files, deployments and images are afterwards as they were."""
    originals = {name: (stack.folder / name).read_text() for name in TOUCHED}
    known = {item["id"] for item in stack.api("POST", "/deployments/filter", {})}
    modules = set((stack.folder / "flows").iterdir())
    theirs = docker("image", "ls", "--quiet", IMAGE).strip()
    yield stack
    for name, text in originals.items():
        (stack.folder / name).write_text(text)
    for item in stack.api("POST", "/deployments/filter", {}):
        if item["id"] not in known:
            stack.api("DELETE", f"/deployments/{item['id']}")
    for module in set((stack.folder / "flows").glob("*.*")) - modules:
        module.unlink()
    stack.make("deploy")
    if theirs:  # somebody on this machine has followed the page
        docker("tag", theirs, IMAGE)


def test_the_page_does_what_it_says(project: Stack) -> None:
    outputs = []
    for step in steps():
        if step.kind == "sh":
            done = project.run("sh", "-ec", step.text)
            assert done.returncode == 0, f"{step.text}\n{done.stdout}"
            outputs.append(done.stdout)
        elif step.kind == "yaml":
            assert step.file == "prefect.yaml"
            with (project.folder / step.file).open("a") as file:
                file.write(f"\n{step.text}")
        else:
            assert step.file, step.text
            (project.folder / step.file).write_text(step.text)

    said = "\n".join(outputs)
    assert len(outputs) == 5
    assert said.count(": Completed") == 4
    assert said.count(" days to go") == 2
    assert "Asking with a token of 17 characters" in said
    assert "not-for-everybody" not in said
    assert "git version" in said
    morning = project.deployment("countdown/every-morning")["schedules"][0]["schedule"]
    assert (morning["cron"], morning["timezone"]) == ("30 7 * * *", "America/New_York")
    programs = docker("run", "--rm", f"{project.project}-flow:local", "ls", "/usr/bin").split()
    assert "git" not in programs, "an image of its own is for what the others don't have"

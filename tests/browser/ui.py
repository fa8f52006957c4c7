"""What a person at a browser sees of the stack. Runs in the container that `test_ui.py` makes."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

UI_URL = os.environ["UI_URL"]
UI_LOGIN = os.environ["UI_LOGIN"]  # user:password
RUN_NAME = os.environ.get("RUN_NAME", "")  # a completed run of suggest-activity/daily
ARTIFACT_ID = os.environ.get("ARTIFACT_ID", "")  # the artifact that this run left behind
EXPECTED_ACTIVITY = os.environ.get("EXPECTED_ACTIVITY", "")  # its markdown, as the API tells it
TALKING_RUN = os.environ.get("TALKING_RUN", "")  # a run that goes on, by its id
SHOTS = Path(os.environ["SHOTS"])

SECONDS = 20
TASKS = ["get_random_activity", "print_activity", "save_activity_artifact"]
FLAGS = [
    "--no-sandbox",  # the container is the sandbox: Chromium's own asks for privileges
    "--use-angle=swiftshader",  # WebGL, which the graph of a run is drawn with, without a GPU
    "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    # Nothing but the stack: the UI has to do without the internet, and would tell Amplitude.
    f"--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE {urlsplit(UI_URL).hostname}",
]


@pytest.fixture
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A window that nobody has logged in from; a failed test leaves what it showed in SHOTS."""
    expect.set_options(timeout=SECONDS * 1000)
    SHOTS.mkdir(parents=True, exist_ok=True)
    context = browser.new_context(
        base_url=UI_URL, viewport={"width": 1280, "height": 800}, locale="en-US"
    )
    context.set_default_timeout(SECONDS * 1000)
    page = context.new_page()
    yield page
    if request.session.testsfailed:  # this very test: every test has a pytest of its own
        page.screenshot(path=SHOTS / "failure.png")
        (SHOTS / "failure.html").write_text(page.content())
    context.close()


@pytest.fixture
def ui(page: Page) -> Page:
    """The UI, logged in by its form."""
    page.goto("/")
    log_in(page, UI_LOGIN)
    expect(menu(page, "Runs")).to_be_visible()
    return page


def test_login(page: Page) -> None:
    page.goto("/")
    expect(page.get_by_role("button", name="Login")).to_be_visible()
    expect(menu(page, "Runs")).to_be_hidden()
    log_in(page, "admin:not-the-password")
    expect(page.get_by_text("Invalid credentials")).to_be_visible()
    expect(menu(page, "Runs")).to_be_hidden()

    log_in(page, UI_LOGIN)
    expect(menu(page, "Runs")).to_be_visible()
    expect(page.get_by_role("link", name="docker-pool")).to_be_visible()
    expect(page.get_by_role("button", name="Login")).to_be_hidden()


def test_run(ui: Page) -> None:
    menu(ui, "Runs").click()
    # The page completes its own address; who leaves before is called back, to an error page.
    expect(ui).to_have_url(re.compile("range="))
    # Tests that were quicker may have filled the first page.
    ui.get_by_placeholder("Search by flow run name").fill(RUN_NAME)
    expect(ui).to_have_url(re.compile(f"flow-run-search={RUN_NAME}"))
    link = ui.get_by_role("link", name=RUN_NAME, exact=True)
    expect(
        ui.get_by_role("listitem").filter(has=link).filter(has_text="Completed")
    ).to_contain_text("suggest-activity")
    link.click()

    expect(ui.get_by_role("tab", name="Logs")).to_be_visible()
    main = ui.get_by_role("main")
    expect(main.get_by_role("navigation", name="breadcrumb")).to_contain_text(RUN_NAME)
    expect(main.get_by_text("Completed", exact=True)).to_be_visible()
    expect(main.get_by_text("3 Task runs")).to_be_visible()
    expect(ui.get_by_role("log")).to_contain_text(f"How about this: {heading_and_items()[0]}")

    # The graph is a canvas, with nothing in it to ask for; the picture shows it.
    expect(main.locator("canvas")).to_be_visible()
    shoot(ui, "run")
    ui.get_by_role("tab", name="Task Runs").click()
    for task in TASKS:
        expect(ui.get_by_role("tabpanel", name="Task Runs")).to_contain_text(task)


def test_artifact(ui: Page) -> None:
    ui.goto("/v2/artifacts")
    ui.get_by_role("link").filter(
        has=ui.get_by_role("heading", name="activity", exact=True)
    ).click()
    ui.get_by_role("link", name=ARTIFACT_ID[:8]).click()

    heading, items = heading_and_items()
    artifact = ui.get_by_role("tabpanel", name="Artifact")
    expect(artifact.get_by_role("heading", level=1)).to_have_text(heading)
    expect(artifact.get_by_role("listitem")).to_have_text(items)
    expect(artifact.get_by_text(f"# {heading}")).to_be_hidden()
    shoot(ui, "artifact")


def test_deployment(ui: Page) -> None:
    menu(ui, "Deployments").click()
    row = ui.get_by_role("row").filter(has=ui.get_by_role("link", name="daily", exact=True))
    expect(row).to_contain_text("suggest-activity")
    expect(row).to_contain_text("At 09:00 AM")
    row.get_by_role("link", name="daily", exact=True).click()

    expect(ui.get_by_role("switch", name="At 09:00 AM")).to_be_checked()
    expect(ui.get_by_text("Next Run")).to_be_visible()
    expect(ui.get_by_text("auto-scheduled").first).to_be_visible()


# Follows a run's log by websocket, as a page of one's own would, until it has a text.
FOLLOW = """([login, run, text]) => new Promise((resolve, reject) => {
  const url = location.origin.replace("http", "ws") + "/api/logs/out";
  const socket = new WebSocket(url, "prefect");
  const filter = {flow_run_id: {any_: [run]}};
  socket.onopen = () => socket.send(JSON.stringify({type: "auth", token: login}));
  socket.onclose = () => reject("closed");
  setTimeout(() => reject("nothing came"), 20000);
  socket.onmessage = ({data}) => {
    const message = JSON.parse(data);
    if (message.type === "auth_success") socket.send(JSON.stringify({type: "filter", filter}));
    else if (message.log.message.includes(text)) resolve(message.log.message);
  };
})"""


def test_a_log_comes_in_while_the_run_goes_on(ui: Page) -> None:
    ui.goto(f"/v2/runs/flow-run/{TALKING_RUN}")
    ui.get_by_role("combobox", name="log sort order").click()
    ui.get_by_role("option", name="Newest to oldest").click()
    lines = ui.get_by_role("log").get_by_role("listitem")
    newest = lines.filter(has_text="Did you know?").first
    expect(newest).to_be_visible()
    expect(newest).not_to_have_text(newest.inner_text())  # the next one is there, by itself
    expect(ui.get_by_role("main").get_by_text("Running", exact=True).first).to_be_visible()
    assert ui.evaluate(FOLLOW, [UI_LOGIN, TALKING_RUN, "Did you know?"])


def log_in(page: Page, login: str) -> None:
    """Fills in the login page's form."""
    page.get_by_placeholder("admin:pass").fill(login)
    page.get_by_role("button", name="Login").click()


def menu(page: Page, name: str) -> Locator:
    """An entry of the menu, which only who is logged in gets to see."""
    return page.get_by_role("link", name=name, exact=True)


def heading_and_items() -> tuple[str, list[str]]:
    """What a reader should see of the artifact's markdown: its heading, and its list."""
    heading, *items = [line for line in EXPECTED_ACTIVITY.splitlines() if line]
    return heading.removeprefix("# "), [re.sub(r"^- |\*\*|[<>]", "", item) for item in items]


def shoot(page: Page, name: str) -> None:
    """Saves the page as NAME.png, once nothing on it moves or loads any more."""
    (SHOTS / f"{name}.png").write_bytes(steady(page.screenshot))


def steady(take: Callable[[], bytes]) -> bytes:
    """Takes pictures until two in a row are the same."""
    deadline = monotonic() + SECONDS
    before, picture = b"", take()
    while picture != before:
        assert monotonic() < deadline, f"the page still changes after {SECONDS} s"
        before, picture = picture, take()
    return picture

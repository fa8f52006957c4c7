"""The flows: what they take of an API, how they show and write it, which parameters they refuse."""

import asyncio
import csv
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from cat_fact import cat_fact, cat_fact_async, get_fact
from github_stars import Repository, get_repository, github_stars
from morning_report import as_markdown as report
from prefect import Flow
from prefect.exceptions import ParameterTypeError
from prefect.logging import disable_run_logger
from prefect.states import Completed, Failed
from suggest_activity import Activity, as_markdown, get_random_activity, suggest_activity
from users_etl import COLUMNS, extract, load, transform, users_etl
from web import get, get_async, worth_a_retry


def test_an_activity_of_the_upstream_is_taken(upstream_url: str) -> None:
    activity = get_random_activity.fn(f"{upstream_url}/api/activity?type=music&participants=1")
    assert activity.type == "music"
    assert activity.activity


@pytest.mark.parametrize(
    ("query", "missing"),
    [
        ("type=no-such-type", "activity: Field required"),
        ("fault_body=not-json", "body: Invalid JSON"),
        ("fault_body=empty", "body: Invalid JSON"),
        ("fault_body=wrong-shape", "activity: Field required"),
    ],
)
def test_a_wrong_body_names_the_url_and_what_was_missing(
    upstream_url: str, query: str, missing: str
) -> None:
    url = f"{upstream_url}/api/activity?{query}"
    with pytest.raises(ValueError, match="answered 200 with no activity in it") as error:
        get_random_activity.fn(url)
    assert url in str(error.value)
    assert missing in str(error.value)


@pytest.mark.parametrize("query", ["fault_status=500", "fault_status=404", "fault_body=truncated"])
def test_errors_and_cut_off_answers_are_errors(upstream_url: str, query: str) -> None:
    with pytest.raises(requests.RequestException):
        get_random_activity.fn(f"{upstream_url}/api/activity?{query}")


def test_markdown_has_what_is_known() -> None:
    full = Activity(
        activity="Sing", type="music", participants=2, price=0, link="https://example.org"
    )
    assert as_markdown(full) == (
        "# Sing\n\n- **Type:** music\n- **Participants:** 2\n- **Price:** free\n"
        "- **More:** <https://example.org>\n"
    )
    assert as_markdown(Activity(activity="Sit")) == (
        "# Sit\n\n- **Type:** unknown\n- **Participants:** 1\n"
    )


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("fault_body=empty-list", "an empty list"),
        ("fault_body=not-json", "no list of users"),
        ("fault_body=wrong-shape", "no list of users"),
        ("fault_body=truncated", "Connection broken"),
        ("fault_status=500", "500 Server Error"),
        ("fault_status=404", "404 Client Error"),
    ],
)
def test_users_that_are_none_are_an_error(upstream_url: str, query: str, problem: str) -> None:
    with (
        disable_run_logger(),
        pytest.raises((ValueError, requests.RequestException), match=problem),
    ):
        extract.fn(f"{upstream_url}/api/users?{query}")


def test_users_without_a_column_are_an_error_that_names_it(upstream_url: str) -> None:
    with (
        disable_run_logger(),
        pytest.raises(ValueError, match=r"0\.username: Field required; 0\.email: Field required"),
    ):
        extract.fn(f"{upstream_url}/api/users?fault_body=incomplete")


def test_users_are_written_whole_whatever_their_names(
    upstream_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    with disable_run_logger():
        users = extract.fn(f"{upstream_url}/api/users")
        files = [load.fn(transform.fn(users), "some/where") for _ in range(2)]
    assert sorted((tmp_path / "some/where").iterdir()) == sorted(set(files)), "no file over another"
    with files[0].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS
    assert [row["name"] for row in rows] == [user["name"] for user in users]
    assert any("," in row["name"] for row in rows)
    assert not all(row["name"].isascii() for row in rows)
    first = users[0]["address"]
    assert rows[0]["address"] == ", ".join(
        first[part] for part in ("street", "suite", "zipcode", "city")
    )
    assert rows[0]["company"] == users[0]["company"]["name"]


def test_a_folder_outside_of_the_data_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upstream_url: str
) -> None:
    data, outside = tmp_path / "data", tmp_path / "outside"
    data.mkdir()
    outside.mkdir()
    (data / "link").symlink_to(outside)
    monkeypatch.setenv("DATA_DIR", str(data))
    with disable_run_logger():
        table = transform.fn(extract.fn(f"{upstream_url}/api/users"))
        for path in ("link", "../outside", str(outside)):
            with pytest.raises(ValueError, match="expected a folder below"):
                load.fn(table, path)
    assert list(outside.iterdir()) == []


def test_a_path_that_is_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users").write_text("")
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    with disable_run_logger(), pytest.raises(OSError, match=r"can't write.*/users/users-"):
        load.fn(transform.fn([USER]), "users")


USER: dict[str, Any] = {
    "id": 1,
    "name": "A",
    "username": "a",
    "email": "a@example.org",
    "address": {"street": "S", "suite": "1", "zipcode": "Z", "city": "C"},
    "phone": "1",
    "company": {"name": "A & Co"},
}


@pytest.mark.parametrize(
    ("flow", "parameters"),
    [
        (suggest_activity, {"url": "example.org"}),
        (suggest_activity, {"url": "ftp://example.org"}),
        (users_etl, {"url": "https://"}),
        (users_etl, {"path": "../elsewhere"}),
        (users_etl, {"path": "/etc"}),
        (users_etl, {"path": "a/../../b"}),
        (users_etl, {"path": ".results"}),
        (users_etl, {"path": ""}),
        (users_etl, {"retry_delay_seconds": -1}),
        (cat_fact, {"count": 0}),
        (cat_fact, {"count": "many"}),
        (cat_fact_async, {"at_once": 1000}),
        (github_stars, {"repositories": ["prefect"]}),
        (github_stars, {"repositories": []}),
        (github_stars, {"repositories": ["../user"]}),
        (github_stars, {"repositories": ["a/.."]}),
        (github_stars, {"many": "lots"}),
    ],
)
def test_wrong_parameters_are_refused(flow: Flow[..., Any], parameters: dict[str, Any]) -> None:
    known = {name: about.get("default") for name, about in flow.parameters.properties.items()}
    assert flow.validate_parameters(known)
    with pytest.raises(ParameterTypeError):
        flow.validate_parameters({**known, **parameters})


def test_a_fact_is_taken(upstream_url: str) -> None:
    assert get_fact.fn(f"{upstream_url}/api/fact")
    with pytest.raises(ValueError, match="no fact in it"):
        get_fact.fn(f"{upstream_url}/api/fact?max_length=1")


def test_a_repository_is_taken(upstream_url: str) -> None:
    found = get_repository.fn("PrefectHQ/prefect", f"{upstream_url}/api")
    assert found.full_name == "PrefectHQ/prefect"
    assert found.stargazers_count > 10_000
    with pytest.raises(requests.HTTPError, match="404"):
        get_repository.fn("nobody/nothing", f"{upstream_url}/api")


def test_the_report_says_what_worked_and_what_did_not() -> None:
    text = report(
        {
            "Stars": Completed(data={"a/b": 3}),
            "A fact": Completed(data=["One", "Two"]),
            "Users": Failed(message="no\nroute"),
        }
    )
    assert "- ✅ **Stars:** a/b 3\n" in text
    assert "- ✅ **A fact:** One; Two\n" in text
    assert "- ❌ **Users:** Failed: no route\n" in text


def test_a_retry_after_is_waited_for_asynchronously(upstream_url: str) -> None:
    async def ask() -> Repository:
        fault = "fault_status=503&fault_retry_after=2&fault_times=1&fault_key=async"
        async with httpx.AsyncClient() as client:
            url = f"{upstream_url}/api/repos/psf/requests?{fault}"
            return await get_async(client, url, Repository, "repository")

    began = time.monotonic()
    assert asyncio.run(ask()).full_name == "psf/requests"
    assert time.monotonic() - began >= 2


def test_an_answer_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("web.DEADLINE_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while True:
                    connection.sendall(b" ")
                    time.sleep(0.1)

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        with pytest.raises(requests.ReadTimeout, match="no end after 1 s"):
            get("http://{}:{}/".format(*listener.getsockname()), Activity, "activity")
        assert time.monotonic() - began < 5
        thread.join()


def test_a_retry_after_is_waited_for(upstream_url: str) -> None:
    began = time.monotonic()
    fault = "fault_status=429&fault_retry_after=2&fault_times=1&fault_key=patient"
    assert get(f"{upstream_url}/api/repos/psf/requests?{fault}", Repository, "repository")
    assert time.monotonic() - began >= 2


@pytest.mark.parametrize(
    ("query", "again"),
    [
        ("fault_status=500", True),
        ("fault_status=429", True),
        ("fault_status=408", True),
        ("fault_status=404", False),
        ("fault_status=401", False),
        ("fault_body=truncated", True),
        ("fault_body=not-json", True),
    ],
)
def test_what_may_heal_is_tried_again(upstream_url: str, query: str, again: bool) -> None:
    assert tried_again(f"{upstream_url}/api/activity?{query}") is again


def test_what_is_no_url_is_not_tried_again() -> None:
    assert tried_again("example.org/api") is False
    assert tried_again("http://[") is False
    assert tried_again("http://127.0.0.1:1/api") is True


def tried_again(url: str) -> bool:
    """Whether an activity that can't be had there is asked for once more."""
    with pytest.raises((ValueError, requests.RequestException)) as error:
        get(url, Activity, "activity")
    state: Any = Failed(data=error.value)
    return worth_a_retry(get_random_activity, None, state)  # type: ignore[arg-type]

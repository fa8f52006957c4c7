"""deploy.py: what it accepts and what it says."""

import json
import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from worker.checks import Problem, check, check_schedule
from worker.deploy import alert_webhook_url, fingerprint, prune_results, read_template

FLOW = "flows/suggest_activity.py:suggest_activity"
TEMPLATE = Path(__file__).parents[2] / "worker/base-job-template.json"
ENVIRONMENT = {
    "FLOW_IMAGE": "x-flow:local",
    "FLOWS_NETWORK": "x_flows",
    "DATA_VOLUME": "x_data",
    "ACTIVITY_API_URL": "http://a",
    "USERS_API_URL": "http://u",
    "FACT_API_URL": "http://f",
    "GITHUB_API_URL": "http://g",
}
ENTRY: dict[str, Any] = {"name": "daily", "entrypoint": FLOW, "work_pool": {"name": "docker-pool"}}


def test_template_is_filled_from_the_environment() -> None:
    template = read_template(TEMPLATE.read_text(), ENVIRONMENT)
    properties = template["variables"]["properties"]
    assert properties["image"]["default"] == "x-flow:local"
    assert properties["networks"]["default"] == ["x_flows"]
    assert properties["volumes"]["default"] == ["x_data:/data"]
    assert properties["env"]["default"]["ACTIVITY_API_URL"] == "http://a"
    assert "${" not in json.dumps(template)


def test_every_variable_of_the_template_is_used() -> None:
    template = json.loads(TEMPLATE.read_text())
    configuration = json.dumps(template["job_configuration"])
    for name in template["variables"]["properties"]:
        assert f"{{{{ {name} }}}}" in configuration


@pytest.mark.parametrize(
    ("text", "found"), [("{", "Expecting property name"), ('{"a": "${NOWHERE}"}', "no 'NOWHERE'")]
)
def test_a_wrong_template_is_named(text: str, found: str) -> None:
    with pytest.raises(Problem, match=found):
        read_template(text, ENVIRONMENT)


@pytest.mark.parametrize("url", ["hooks.slack.com/x", "http://[x", "https:///x", "ftp://a.example"])
def test_a_wrong_webhook_is_refused_without_saying_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "alert_webhook_url"
    monkeypatch.setenv("ALERT_WEBHOOK_URL_FILE", str(file))
    file.write_text("https://hooks.slack.com/services/x")
    assert alert_webhook_url() == "https://hooks.slack.com/services/x"
    file.write_text("")
    assert alert_webhook_url() == ""
    file.write_text(url)
    with pytest.raises(Problem, match="ALERT_WEBHOOK_URL") as error:
        alert_webhook_url()
    assert url not in str(error.value)


def test_old_results_are_removed(tmp_path: Path) -> None:
    for name, days in {"old": 31, "young": 29}.items():
        path = tmp_path / name
        path.write_text("")
        past = time.time() - days * 86400
        os.utime(path, (past, past))
    prune_results(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["young"]
    prune_results(tmp_path / "nowhere")


def test_what_is_no_result_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    os.utime(tmp_path / "folder", (0, 0))
    prune_results(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"dangling", "folder"}


def test_a_result_that_cannot_be_removed_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").write_text("")
    os.utime(tmp_path / "old", (0, 0))
    monkeypatch.setattr(Path, "unlink", Mock(side_effect=PermissionError))
    prune_results(tmp_path)
    assert (tmp_path / "old").exists()


@pytest.mark.parametrize(
    ("schedule", "found"),
    [
        ({"cron": "0 9 * *"}, "0 9"),
        ({"cron": "61 9 * * *"}, "61 9"),
        ({"cron": "0 9 * * *", "timezone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"cron": "0 9 * * *", "interval": 60}, "one of `cron:`"),
        ({"slug": "x"}, "one of `cron:`"),
        ({"interval": 0}, "an interval in seconds"),
        ({"interval": "hourly"}, "an interval in seconds"),
        ("0 9 * * *", "one of `cron:`"),
    ],
)
def test_wrong_schedules_are_named(schedule: Any, found: str) -> None:
    with pytest.raises(Problem) as error:
        check_schedule(schedule, "change it")
    assert found in str(error.value)
    assert "change it" in str(error.value)


@pytest.mark.parametrize(
    "schedule",
    [
        {"cron": "0 9 * * *", "timezone": "Europe/Berlin"},
        {"cron": "0 9 * * *", "timezone": "{{ prefect.variables.schedule_timezone }}"},
        {"interval": 600},
        {"rrule": "FREQ=DAILY"},
    ],
)
def test_right_schedules_pass(schedule: Any) -> None:
    check_schedule(schedule, "")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": None}, "`name:`"),
        ({"entrypoint": "flows/suggest_activity.py"}, "`entrypoint: flows/module.py:function`"),
        ({"entrypoint": "flows/nowhere.py:nowhere"}, "a flow at flows/nowhere.py:nowhere"),
        ({"work_pool": {}}, "`work_pool: {name: docker-pool}`"),
        ({"work_pool": "docker-pool"}, "`work_pool: {name: docker-pool}`"),
        ({"schedules": [{"cron": "x"}]}, "a cron expression"),
        ({"schedules": "0 9 * * *"}, "a list as `schedules:`"),
        ({"name": "a/b"}, "a `name:` without"),
        ({"parameters": {"ulr": "x"}}, "parameters of suggest-activity: url"),
        ({"parameters": {"url": "nowhere"}}, "does not match"),
        ({"parameters": ["url"]}, "`parameters: {name: value}`"),
        ({"schedules": [{"interval": 60, "parameters": {"url": 5}}]}, "not of type 'string'"),
    ],
)
def test_wrong_entries_are_named(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(Problem) as error:
        check({**ENTRY, **change})
    assert expected in str(error.value)


def test_what_prefect_fills_in_is_not_judged() -> None:
    assert check({**ENTRY, "parameters": {"url": "{{ prefect.variables.somewhere }}"}})


def test_a_flow_for_another_image_need_not_import_in_this_one(tmp_path: Path) -> None:
    module = tmp_path / "special.py"
    module.write_text(
        "import no_such_module\nfrom prefect import flow\n\n@flow\ndef special(): pass\n"
    )
    entry = {**ENTRY, "entrypoint": f"{module}:special"}
    with pytest.raises(Problem, match="no_such_module"):
        check(entry)
    pool = {"name": "docker-pool", "job_variables": {"image": "another:1"}}
    assert check({**entry, "work_pool": pool}).name == "special"


def test_fingerprint_follows_entry_steps_flow_and_references(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flow = check(ENTRY)
    plain = fingerprint({}, ENTRY, flow)
    assert plain == fingerprint({"deployments": ["others"]}, dict(reversed(ENTRY.items())), flow)
    assert plain != fingerprint({"pull": []}, ENTRY, flow)
    assert plain != fingerprint({}, {**ENTRY, "tags": ["x"]}, flow)
    assert plain != fingerprint({}, ENTRY, flow.with_options(description="another"))
    templated = {**ENTRY, "tags": ["{{ $TAG }}"]}
    monkeypatch.setenv("TAG", "a")
    before = fingerprint({}, templated, flow)
    monkeypatch.setenv("TAG", "b")
    assert fingerprint({}, templated, flow) != before

"""suggest_activity: what it takes for an activity, and how it shows it."""

import pytest
import requests
from suggest_activity import Activity, as_markdown, get_random_activity


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

"""alerts.py: what a webhook is sent."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from uuid import UUID

from prefect.server.events.jinja_filters import all_filters
from prefect.server.utilities.user_templates import (
    register_user_template_filters,
    render_user_template_sync,
)

from worker.alerts import payload

NASTY = 'He said: "{{ no }}" <b>\n\\ ünï'


def rendered(url: str) -> dict[str, str]:
    """What the server would post, its templates being Prefect's own."""
    register_user_template_filters({**all_filters, "ui_url": lambda run: f"http://ui/{run.id}"})
    state = SimpleNamespace(name="Failed", type="FAILED", message=NASTY)
    run = SimpleNamespace(
        id=UUID(int=1),
        name="brave-lion",
        state=state,
        expected_start_time=datetime(2026, 11, 22, 9, tzinfo=UTC),
    )
    context = {
        "flow_run": run,
        "flow": SimpleNamespace(name="users-etl"),
        "deployment": SimpleNamespace(name="hourly"),
    }
    found: dict[str, str] = json.loads(render_user_template_sync(payload(url), context))
    return found


def test_json_has_it_all_and_a_text() -> None:
    sent = rendered("https://example.org/hook")
    assert sent["text"].startswith("users-etl/hourly Failed, run brave-lion: He said")
    assert sent["text"].endswith(f"\nhttp://ui/{UUID(int=1)}")
    assert sent["message"] == NASTY
    assert (sent["flow"], sent["deployment"], sent["state"]) == ("users-etl", "hourly", "Failed")
    assert sent["expected_start_time"] == "2026-11-22 09:00:00+00:00"


def test_slack_gets_its_own_shape() -> None:
    sent = rendered("https://hooks.slack.com/services/T/B/x")
    assert sent.keys() == {"text"}
    assert 'He said: "{{ no }}" &lt;b&gt;\n' in sent["text"]

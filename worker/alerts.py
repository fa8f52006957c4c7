"""Who hears of a run that failed, crashed or is late: a webhook, called by Prefect's automations.

The server calls it, so no flow run ever waits for it.
"""

from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.types import SecretDict
from pydantic import SecretStr

BLOCK = "alerts"
SLACK = "hooks.slack.com"
# https://api.slack.com/reference/surfaces/formatting#escaping: & first.
SLACK_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# By the state's type, since a failed state may have any name; of late ones there is but one.
AUTOMATIONS: dict[str, dict[str, Any]] = {
    "Alert: failed or crashed run": {
        "expect": {"prefect.flow-run.*"},
        "match": {"prefect.state-type": ["FAILED", "CRASHED"]},
    },
    "Alert: late run": {"expect": {"prefect.flow-run.Late"}},
}
WHAT = 'flow.name ~ "/" ~ deployment.name ~ " " ~ flow_run.state.name ~ ", run " ~ flow_run.name'
WHY = '(": " ~ flow_run.state.message if flow_run.state.message else "")'


def apply_alerts(client: SyncPrefectClient, url: str) -> str:
    """Makes the server's automations what the setting says; returns what became of them.

    Args:
        client: Of the server.
        url: The webhook; empty for no alerts.
    """
    if not url:
        for name in AUTOMATIONS:
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)
        with suppress(ObjectNotFound):
            left = client.read_block_document_by_name(BLOCK, "webhook", include_secrets=False)
            client.delete_block_document(left.id)
        return "none, ALERT_WEBHOOK_URL is empty"
    block = Webhook(url=SecretStr(url), headers=SecretDict({"Content-Type": "application/json"}))
    block_id = block.save(BLOCK, overwrite=True)
    for name, events in AUTOMATIONS.items():
        # Every field that is sent is named: an update leaves out those that aren't, types included.
        wanted = AutomationCore(
            name=name,
            description="Made by `make deploy`, from ALERT_WEBHOOK_URL in .env",
            trigger=EventTrigger(
                type="event",
                posture=Posture.Reactive,
                # Not of subflows, whose failure is their parent's to tell.
                match_related={"prefect.resource.role": "deployment"},
                **events,
            ),
            actions=[
                CallWebhook(type="call-webhook", block_document_id=block_id, payload=payload(url))
            ],
        )
        found = client.read_automations_by_name(name)
        if not found:
            client.create_automation(wanted)
        for automation in found[:1]:
            # Whoever has switched it off in the UI meant it.
            wanted.enabled = automation.enabled
            client.update_automation(automation.id, wanted)
        for double in found[1:]:
            client.delete_automation(double.id)
    return f"to {urlsplit(url).hostname}"


def payload(url: str) -> str:
    """The template of what is posted: JSON, of which Slack wants no more than `text`."""
    text = f'{WHAT} ~ {WHY} ~ "\\n" ~ (flow_run | ui_url)'
    if urlsplit(url).hostname == SLACK:
        for character, escaped in SLACK_ESCAPES.items():
            text = f"({text}) | replace('{character}', '{escaped}')"
        return f'{{"text": {{{{ ({text}) | tojson }}}}}}'
    values = {
        "text": text,
        "flow": "flow.name",
        "deployment": "deployment.name",
        "flow_run": "flow_run.name",
        "flow_run_id": "flow_run.id",
        "state": "flow_run.state.name",
        "state_type": "flow_run.state.type",
        "message": "flow_run.state.message",
        "expected_start_time": "flow_run.expected_start_time",
        "url": "flow_run | ui_url",
    }
    fields = (f'"{key}": {{{{ ({value}) | string | tojson }}}}' for key, value in values.items())
    return "{" + ", ".join(fields) + "}"

"""Every slot done once, whatever breaks: see chaos.py. `make test` has the quick faults."""

import json
import os
import random
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.faults.chaos import FAULTS, Campaign, Row, lane, ledger, say
from tests.stack import EVIDENCE, PROJECT, Stack

RESULTS = PROJECT / "bench/results"
ENGINE = [name for name in FAULTS if "engine" in name]


def settle(campaign: Campaign) -> list[Row]:
    """Waits until all is healed; the table, and evidence where that isn't so."""
    verdict = campaign.heal()
    rows = campaign.report(verdict, campaign.healed_until)
    if not verdict.holds:
        folder = EVIDENCE / f"chaos-{campaign.stack.project}"
        shutil.rmtree(folder, ignore_errors=True)
        campaign.stack.leave_evidence(folder)
    return rows


def show(rows: list[Row], path: Path | None = None) -> None:
    """Prints the table, writes it as JSON, and fails where it has anything that is broken."""
    text = "\n".join([Row.head(), *map(str, rows)])
    print(f"\n{text}\n", flush=True)
    if path is not None:
        result = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "faults": [asdict(row) for row in rows]}
        path.write_text(json.dumps(result, indent=1) + "\n")
    assert not any(row.broken for row in rows), text


@pytest.mark.timeout(900)
def test_the_quick_ones(stack: Stack, first_run: dict[str, Any], tmp_path: Path) -> None:
    """Each once, what is stopped for some seconds only."""
    with ledger(tmp_path) as found:
        campaign = Campaign(stack, found, outage=12)
        try:
            for name, fault in FAULTS.items():
                if fault.quick:
                    campaign.inject(name)
            show(settle(campaign))
        finally:
            campaign.remove()
    assert "everything is right" in stack.make("status")


@pytest.fixture
def chosen() -> list[str]:
    """The faults whose names contain one of FAULT's parts, by default all."""
    parts = os.environ.get("FAULT", "").split(",")
    chosen = [name for name in FAULTS if any(part in name for part in parts)]
    assert chosen, f"expected parts of {list(FAULTS)}, found FAULT={','.join(parts)}"
    return chosen


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.skipif(bool(os.environ.get("SOAK")), reason="SOAK is set")
def test_all(chosen: list[str], tmp_path: Path) -> None:
    """Each three times; on two stacks at once, each of which mostly waits."""
    times = int(os.environ.get("TIMES", "3"))
    queue = deque(name for name in chosen if name not in ENGINE)

    def inject(number: int, others: list[Future[list[Row]]]) -> list[Row]:
        with lane(tmp_path / str(number), outage=60) as campaign:
            for name in take(queue):
                campaign.inject(name, times)
                campaign.heal()
            for other in others:
                other.result()
            if others:  # the engine is everybody's
                for name in set(ENGINE) & set(chosen):
                    campaign.inject(name, times)
            return settle(campaign)

    with ThreadPoolExecutor(2) as pool:
        try:
            second = pool.submit(inject, 2, [])
            rows = pool.submit(inject, 1, [second]).result() + second.result()
        except BaseException:
            queue.clear()
            Campaign.ending.set()
            say("ending after the faults that are on")
            raise
    order = ["none", *FAULTS]
    rows.sort(key=lambda row: order.index(row.fault))  # "none" for each stack
    show(rows, RESULTS / "chaos.json" if chosen == list(FAULTS) else None)


def take(queue: deque[str]) -> Iterator[str]:
    """One after the other, until there is none left."""
    while queue:
        yield queue.popleft()


@pytest.mark.chaos
@pytest.mark.timeout(12 * 3600)
@pytest.mark.skipif(not os.environ.get("SOAK"), reason="SOAK=minutes asks for it")
def test_soak(chosen: list[str], tmp_path: Path) -> None:
    """A random fault every minute."""
    seed = int(os.environ.get("SEED") or random.randrange(10**6))
    say(f"SEED={seed}")
    gentle = [name for name in chosen if FAULTS[name].gentle]
    with lane(tmp_path / "1", outage=30, interval=2) as campaign:
        campaign.soak(float(os.environ["SOAK"]), gentle, random.Random(seed))
        show(settle(campaign), RESULTS / "soak.json")

"""The checker finds what it is there for, and nothing else."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.faults.ledger import (
    Container,
    Entry,
    Kill,
    Ledger,
    Run,
    Slot,
    Verdict,
    check,
    due_slots,
)

NAME = "ledger/docker"
SLOTS = list(due_slots(NAME, 10, 1000, 1030))
ids = (str(number) for number in count())


def execution(slot: Slot, run: str = "run", late: float = 0.1, ends: bool = True) -> list[Entry]:
    """What a run that goes well writes."""
    own: dict[str, Any] = {
        "deployment": slot.deployment,
        "due": slot.due,
        "run": run,
        "execution": next(ids),
    }
    start, end = slot.due + late, slot.due + late + 1
    entries = [Entry(event="start", at=start, **own), Entry(event="end", at=end, **own)]
    return entries if ends else entries[:1]


def runs(slots: list[Slot]) -> list[Run]:
    return [Run(id=f"{slot.due:g}", slot=slot, state="COMPLETED") for slot in slots]


GOOD = [entry for slot in SLOTS for entry in execution(slot)]


def verdict(
    entries: list[Entry] | None = None,
    found: list[Run] | None = None,
    containers: list[Container] | None = None,
    kills: Sequence[Kill] = (),
) -> Verdict:
    """Of a history in which everything not named went well."""
    entries = GOOD if entries is None else entries
    return check(SLOTS, entries, found or runs(SLOTS), containers or [], kills)


def test_slots_are_those_of_the_schedule_itself() -> None:
    assert [slot.due for slot in SLOTS] == [1000, 1010, 1020]
    assert [slot.due for slot in due_slots(NAME, 15, 1001, 1040, anchor=5)] == [1010, 1025]
    assert list(due_slots(NAME, 10, 1001, 1010)) == []


def test_a_good_history_holds() -> None:
    assert verdict() == Verdict()
    assert verdict().holds
    waiting = Container("waits", "1020", running=True)
    ahead = Run("1020", Slot(1030, NAME), "PENDING")
    assert check(SLOTS, GOOD, [*runs(SLOTS[:2]), ahead], [waiting]).holds, "its time is to come"


def test_a_slot_without_a_completed_execution_is_lost() -> None:
    assert verdict(GOOD[2:]).lost == [SLOTS[0]], "never started"
    assert verdict([*execution(SLOTS[0], ends=False), *GOOD[2:]]).lost == [SLOTS[0]], "never ended"
    assert verdict([]).lost == SLOTS
    other = replace(SLOTS[0], deployment="ledger/fork")
    assert verdict([*execution(other), *GOOD[2:]]).lost == [SLOTS[0]], "another's doesn't count"
    assert not verdict(GOOD[2:]).holds


def test_a_slot_that_completed_twice_is_doubled() -> None:
    again = execution(SLOTS[1], late=5)
    found = verdict([*GOOD, *again])
    assert list(found.doubled) == [SLOTS[1]]
    assert again[0].execution in found.doubled[SLOTS[1]]
    assert not found.holds
    by_another_run = execution(SLOTS[1], run="other", late=5)
    assert list(verdict([*GOOD, *by_another_run]).doubled) == [SLOTS[1]]
    nobodys = Slot(1015, NAME)
    assert list(verdict([*GOOD, *execution(nobodys), *execution(nobodys)]).doubled) == [nobodys]


def test_what_was_killed_as_it_ended_is_redone() -> None:
    end, again = GOOD[3].at, execution(SLOTS[1], late=5)
    entries = [*GOOD, *again]
    kill = Kill(NAME, end + 0.5, end + 3)
    for fits in (kill, Kill(NAME, end + 0.9, end + 3), Kill(NAME, end - 9, end + 0.1)):
        found = verdict(entries, kills=[fits])
        assert (found.redone, found.doubled) == ([SLOTS[1]], {})
        assert found.holds
        assert "1 redone" in str(found)
    before, after = Kill(NAME, end - 9, end - 0.1), Kill(NAME, end + 1.1, end + 3)
    for other in (before, after, replace(kill, deployment="ledger/fork")):
        found = verdict(entries, kills=[other])
        assert (found.redone, list(found.doubled)) == ([], [SLOTS[1]])
    of_two_runs = [*GOOD, *execution(SLOTS[1], run="other", late=5)]
    assert list(verdict(of_two_runs, kills=[kill]).doubled) == [SLOTS[1]]
    three = [*entries, *execution(SLOTS[1], late=9)]
    assert list(verdict(three, kills=[kill]).doubled) == [SLOTS[1]]
    assert verdict(three, kills=[kill, Kill(NAME, again[1].at, again[1].at)]).holds


def test_a_retry_of_what_did_not_end_and_a_line_written_twice_are_not_doubled() -> None:
    assert verdict([*execution(SLOTS[0], ends=False), *GOOD]).holds
    assert verdict([*GOOD, *GOOD]).holds


def test_a_first_line_before_its_time_is_early() -> None:
    found = verdict([*execution(SLOTS[0], late=-0.25), *GOOD[2:]])
    assert found.early == {SLOTS[0]: pytest.approx(0.25)}
    assert not found.holds
    crashed = execution(SLOTS[0], late=-0.25, ends=False)
    assert list(verdict([*crashed, *GOOD]).early) == [SLOTS[0]], "an attempt that failed, too"


@pytest.mark.parametrize("state", ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "PAUSED"])
def test_a_run_that_does_not_end_is_stuck(state: str) -> None:
    run = replace(runs(SLOTS)[0], state=state)
    found = verdict(found=[run, *runs(SLOTS)[1:]])
    assert found.stuck == [run]
    assert not found.holds, "whatever the ledger says"


def test_what_is_left_over_of_runs() -> None:
    ended = Container("ended", "1000", running=True)
    exited = Container("exited", "1010", running=False)
    unknown = Container("unknown", "nobody's", running=True)
    found = verdict(containers=[ended, exited, unknown])
    assert found.left_over == [ended, exited, unknown]
    assert not found.holds


def test_late_is_told_but_breaks_no_rule() -> None:
    late = [*execution(SLOTS[0], late=61), *GOOD[2:]]
    found = verdict(late)
    assert found.late == {SLOTS[0]: pytest.approx(61)}
    assert found.unmarked == [SLOTS[0]]
    assert found.holds
    marked = [replace(runs(SLOTS)[0], late=True), *runs(SLOTS)[1:]]
    assert verdict(late, marked).unmarked == []
    assert "1 late" in str(found)


def test_the_ledger_takes_refuses_and_keeps(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, "127.0.0.1")
    try:
        first, second = execution(SLOTS[0]), execution(SLOTS[0])
        assert requests.post(ledger.url, json=vars(first[0]), timeout=5).text == "0"
        assert requests.post(ledger.url, json=vars(first[0]), timeout=5).text == "0", "the same one"
        assert requests.post(ledger.url, json=vars(second[0]), timeout=5).text == "1"
        ledger.close()
        with pytest.raises(requests.ConnectionError):
            requests.post(ledger.url, json=vars(second[1]), timeout=5)
        ledger.open()
        threads = [
            threading.Thread(target=requests.post, args=(ledger.url,), kwargs={"json": vars(entry)})
            for entry in GOOD
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = ledger.entries()
        assert found[:3] == [first[0], first[0], second[0]]
        assert sorted(found[3:], key=lambda entry: entry.at) == GOOD
    finally:
        ledger.close()

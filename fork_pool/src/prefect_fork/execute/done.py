"""Remembers that a run's flow has done its work until the server knows.

The server may be away just then, and this process be killed before it is back. The run is Crashed
in the end, and whoever takes it again would do the work twice. What a flow's state is to be is
therefore written where its results are, and told by that next process, which runs no flow then.
"""

import contextlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from prefect.client.schemas.objects import State
from prefect.results import ResultRecord, ResultRecordMetadata  # type: ignore[attr-defined]
from prefect.settings import get_current_settings
from prefect.states import to_state_create


def note(run_id: UUID) -> Path:
    """The file for a flow run."""
    return get_current_settings().results.local_storage_path / f".done-{run_id}"


@contextlib.contextmanager
def noted(run_id: UUID, state: State) -> Iterator[None]:
    """Has a state noted while it is told to the server, and for good if that fails."""
    path = note(run_id)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(to_state_create(state).model_dump_json(serialize_as_any=True))
        beside.replace(path)
    except OSError:  # a full or read-only disk: then it isn't
        traceback.print_exc()
    yield
    forget(run_id)


def noted_state(run_id: UUID, states: list[State]) -> State | None:
    """What an earlier process of the run couldn't tell.

    Args:
        run_id: Of the flow run.
        states: Those that the server knows, in any order.
    """
    try:
        state: State = State.model_validate_json(note(run_id).read_text())
    except (OSError, ValueError):  # none, or one that can't be read
        return None
    if has_ended(states):
        return None
    if isinstance(state.data, ResultRecordMetadata):  # Prefect would drop it
        record: ResultRecord[object] = ResultRecord(metadata=state.data, result=None)
        record.mark_persisted()
        state.data = record
    return state


def has_ended(states: list[State]) -> bool:
    """Has a run, since it was last Running, come to another end than a crash?

    Whoever has it run once more then, means it, and a note is of its earlier life.
    """
    for state in sorted(states, key=lambda state: state.timestamp, reverse=True):
        if state.is_running():
            return False
        if state.is_final() and not state.is_crashed():
            return True
    return False


def forget(run_id: UUID) -> None:
    """Removes the note."""
    with contextlib.suppress(OSError):
        note(run_id).unlink()

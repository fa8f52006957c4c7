"""What is kept of a flow's end until the server knows."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.results import ResultRecord, ResultRecordMetadata  # type: ignore[attr-defined]
from prefect.serializers import JSONSerializer
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from prefect.states import (
    AwaitingRetry,
    Cancelled,
    Completed,
    Crashed,
    Pending,
    Running,
    to_state_create,
)
from prefect_fork.execute.done import forget, noted, noted_state

RUN = uuid4()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        yield tmp_path / "results"


def test_what_was_told_is_forgotten(folder: Path) -> None:
    with noted(RUN, Completed()):
        assert noted_state(RUN, [Running()])
    assert noted_state(RUN, []) is None
    assert list(folder.iterdir()) == []


def test_what_could_not_be_told_is_kept() -> None:
    with pytest.raises(ConnectionError), noted(RUN, Completed(name="Done", message="42")):
        raise ConnectionError
    found = noted_state(RUN, [Running(), Crashed(), AwaitingRetry(), Pending()])
    assert found and (found.type.value, found.name, found.message) == ("COMPLETED", "Done", "42")
    # It ended by other means, and then somebody wanted it once more.
    assert noted_state(RUN, [Running(), Completed(), AwaitingRetry(), Pending()]) is None
    assert noted_state(RUN, [Running(), Cancelled(), AwaitingRetry(), Pending()]) is None
    forget(RUN)
    assert noted_state(RUN, []) is None


def test_a_result_is_kept() -> None:
    metadata = ResultRecordMetadata(storage_key="answer", serializer=JSONSerializer())
    record: ResultRecord[int] = ResultRecord(metadata=metadata, result=42)
    record.mark_persisted()
    with pytest.raises(ConnectionError), noted(RUN, Completed(data=record)):
        raise ConnectionError
    found = noted_state(RUN, [])
    assert found and to_state_create(found).data.storage_key == "answer"


def test_a_disk_that_cannot_be_written_is_no_failure(folder: Path) -> None:
    folder.write_text("no folder")
    with noted(RUN, Completed()):
        pass

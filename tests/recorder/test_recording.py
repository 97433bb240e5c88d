"""A recording is a value: it outlives its trace, can be pickled, changed and compared, and says what it lacks."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pytest

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace import digest
from fdtrace.recorder.trace.details import TraceDetails
from fdtrace.recorder.trace.recording import LoadedDetails, Recording
from fdtrace.recorder.trace.trace import Trace, open_trace
from fdtrace.replayer import BUILTIN, replay_recording
from tests.made_once import made_once
from tests.recorder.helpers import record_played

DETAILS = [name for name in dir(TraceDetails) if not name.startswith("_") and name != "step_rows"]


@pytest.fixture(scope="module")
def path(shared: Path) -> Path:
    """A trace of the played engine."""
    return made_once(shared / "played-150.duckdb", partial(record_played, 150))


@pytest.fixture
def trace(path: Path) -> Iterator[Trace]:
    with open_trace(path) as trace:
        yield trace


def test_a_loaded_recording_outlives_its_trace(path: Path) -> None:
    with open_trace(path) as trace:
        recording = trace.recording().loaded()
        again = trace.recording().loaded()
    assert recording.num_steps == 150
    assert recording.details.acceptance.num_accepted.max() > 0
    assert (recording.details.endings.finished_step >= 0).sum() > 10
    assert pickle.loads(pickle.dumps(recording)) == recording == again
    histories = replay_recording(recording, [BUILTIN["pr7499"]])
    assert [history.name for history in histories] == ["recorded", "pr7499"]


def test_a_recording_is_changed_like_any_other_value(trace: Trace) -> None:
    recording = trace.recording()
    assert isinstance(recording.details, TraceDetails)
    half = {name: column[:75] for name, column in recording.steps.items()}
    for whole in (recording, recording.loaded()):
        shorter = whole.with_steps(half)
        assert (shorter.num_steps, whole.num_steps) == (75, 150)
        assert shorter == replace(whole, steps=half) != whole
        digests, cut = whole.step_digests(), shorter.step_digests()
        assert digests is not None
        assert cut is not None
        assert np.array_equal(cut, digests[:75])
        assert (cut >= 0).all()


def test_recordings_are_equal_where_they_hold_the_same(trace: Trace) -> None:
    recording = trace.recording()
    loaded = recording.loaded()
    assert recording == loaded == trace.recording()
    assert isinstance(loaded.details, LoadedDetails)
    for name in DETAILS:
        assert getattr(recording.details, name) is getattr(recording.details, name), f"{name} is read once"
    ended = loaded.details.endings.finished_step.copy()
    ended[3] += 1
    endings = replace(loaded.details.endings, finished_step=ended)
    assert replace(loaded, details=replace(loaded.details, endings=endings)) != recording
    tokens = {**recording.steps, "num_tokens": recording.steps["num_tokens"] + 1}
    assert recording.with_steps(tokens) != recording
    assert replace(recording, notes=("a note",)) != recording
    assert recording != "a recording"


@pytest.mark.parametrize("name", DETAILS)
def test_what_was_not_read_before_the_trace_was_closed_is_said(path: Path, name: str) -> None:
    with open_trace(path) as trace:
        recording = trace.recording()
    if name in ("block_hashes", "handover"):  # there is nothing to read of this engine
        assert getattr(recording.details, name) is None
        return
    with pytest.raises(TraceError, match="the trace is closed") as caught:
        getattr(recording.details, name)
    assert "loaded()" in caught.value.hint


def test_what_was_read_before_the_trace_was_closed_stays(path: Path) -> None:
    with open_trace(path) as trace:
        recording = trace.recording()
        endings = recording.details.endings
    assert recording.details.endings is endings
    with pytest.raises(TraceError, match="the trace is closed"):
        recording.loaded()


def test_a_recording_that_is_not_loaded_cannot_be_pickled(trace: Trace) -> None:
    with pytest.raises(TraceError, match="cannot be pickled"):
        pickle.dumps(trace.recording())


def test_a_recording_loaded_without_a_look_at_every_row_says_so(trace: Trace) -> None:
    recording = trace.recording().loaded(row_by_row=False)
    assert recording.details.initial == ()
    with pytest.raises(TraceError, match="without the scan of every row"):
        _ = recording.details.row_scan
    assert recording.loaded(row_by_row=False) is recording
    with pytest.raises(TraceError, match="without the scan of every row"):
        recording.loaded()


def test_requests_of_a_step_are_read_from_the_trace_or_an_error(path: Path) -> None:
    with open_trace(path) as trace:
        recording = trace.recording()
        recorded, other = replay_recording(recording, [BUILTIN["pr7499"]], "as recorded")
        assert sum(row.num_tokens for row in recorded.rows(20)) == recording.steps["num_tokens"][20]
        assert len(other.rows(20)) > 0
        in_memory = replay_recording(recording.loaded(), [BUILTIN["pr7499"]], "as recorded")
    for history in in_memory:
        with pytest.raises(TraceError, match="the requests of step 20 are not known"):
            history.rows(20)
    with pytest.raises(TraceError, match="the trace is closed"):
        recorded.rows(20)


def test_a_replay_of_a_loaded_recording_is_that_of_its_trace(trace: Trace) -> None:
    recording = trace.recording()
    read, loaded = (
        replay_recording(one, [BUILTIN["original"]])[1] for one in (recording, recording.loaded())
    )
    assert all(np.array_equal(read.columns[name], loaded.columns[name]) for name in read.columns)
    assert read.outcome.num_exceeded == loaded.outcome.num_exceeded


def test_all_details_are_in_memory_once_loaded(trace: Trace) -> None:
    """`LoadedDetails` has what `TraceDetails` reads, no more and no less."""
    names = {known.name.replace("scan", "row_scan") for known in fields(LoadedDetails)}
    assert names == set(DETAILS)
    recording: Recording = trace.recording()
    assert recording.loaded().loaded() == recording


def test_the_digest_by_sql_is_that_of_the_arrays() -> None:
    """Also of large chunks, and of requests with large numbers: neither may be rounded, nor overflow."""
    rows = [(i % 7, i * 9973 % 200_000, 1 + i * 613 % 65_536, i % 6) for i in range(500)]
    with duckdb.connect() as db:
        db.execute(
            "CREATE TABLE rows (step BIGINT, request INTEGER, num_tokens INTEGER, num_draft_tokens INTEGER)"
        )
        db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", rows)
        by_sql = db.execute(f"SELECT {digest.SQL} FROM rows GROUP BY step ORDER BY step").fetchall()
    step, request, tokens, drafts = np.array(rows, np.int64).T
    assert digest.digests_of(step, (request, tokens, drafts), 7).tolist() == [value for (value,) in by_sql]

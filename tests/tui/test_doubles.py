"""The recordings that these tests make by hand can do what one read from a trace can, and look like it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fdtrace.recorder import schema
from fdtrace.recorder.trace.recording import LoadedDetails, Recording
from fdtrace.recorder.trace.trace import open_trace
from fdtrace.replayer import BUILTIN, replay_recording
from fdtrace.tui.panes.series import Series
from tests.made_once import made_once
from tests.recorder.helpers import record_played
from tests.tui.recordings import case_recording, lab_recording, plain_steps, recording_of

DOUBLES: dict[str, Callable[[], Recording]] = {
    "lab": lab_recording,
    "case": lambda: case_recording("tight_blocks")[0],
    "plain": lambda: recording_of(plain_steps([10, 20, 30])),
}


@pytest.fixture(scope="module")
def real(shared: Path) -> Iterator[dict[str, Recording]]:
    """One recording of the played engine: of an open trace, and two of a closed one."""
    path = made_once(shared / "played-60.duckdb", partial(record_played, 60))
    with open_trace(path) as trace:
        closed = {"closed": trace.recording().loaded(), "brief": trace.recording().loaded(row_by_row=False)}
    with open_trace(path) as trace:
        yield {"open": trace.recording(), **closed}


@pytest.fixture(params=[*DOUBLES, "open", "closed", "brief"])
def recording(request: pytest.FixtureRequest, real: dict[str, Recording]) -> Recording:
    """A double, or the real thing."""
    return DOUBLES[request.param]() if request.param in DOUBLES else real[request.param]


def test_it_is_a_value(recording: Recording) -> None:
    assert type(recording) is Recording
    loaded = recording.loaded(row_by_row=False)
    assert replace(recording) == recording
    assert pickle.loads(pickle.dumps(loaded)) == loaded
    assert loaded.loaded(row_by_row=False) is loaded
    fewer = recording.with_steps({name: column[:2] for name, column in recording.steps.items()})
    assert fewer.num_steps == 2 < recording.num_steps
    assert fewer != recording
    assert fewer.with_steps(recording.steps) == recording


def test_it_can_be_replayed_and_shown(recording: Recording) -> None:
    recorded, other = replay_recording(recording, [BUILTIN["pr7499"]], "as recorded")
    for history in (recorded, other):
        series = Series(history)
        assert len(series) == recording.num_steps
        assert series.peak == int(history.columns["num_tokens"].max())


def test_its_parts_fit_together(recording: Recording) -> None:
    details, count = recording.details, len(recording.requests["request"])
    assert {len(column) for column in recording.steps.values()} == {recording.num_steps}
    assert {len(column) for column in recording.requests.values()} == {count}
    assert len(details.endings.finished_step) == len(details.endings.aborted_step) == count
    assert len(details.acceptance.offsets) == count + 1
    assert details.acceptance.offsets[-1] == len(details.acceptance.num_accepted)
    assert (np.diff(recording.steps["step"]) > 0).all()


def test_its_columns_are_those_of_a_trace(recording: Recording, real: dict[str, Recording]) -> None:
    for mine, theirs, table in (
        (recording.steps, real["closed"].steps, schema.STEP),
        (recording.requests, real["closed"].requests, schema.REQUEST),
    ):
        assert set(mine) <= set(theirs) <= {column.name for column in table.columns}
        for name, column in mine.items():
            assert column.dtype == theirs[name].dtype, name
    details, known = recording.details, real["closed"].details
    assert details.acceptance.num_accepted.dtype == known.acceptance.num_accepted.dtype
    assert details.acceptance.offsets.dtype == known.acceptance.offsets.dtype
    assert details.endings.finished_step.dtype == known.endings.finished_step.dtype


@pytest.mark.parametrize("name", DOUBLES)
def test_a_double_is_loaded(name: str) -> None:
    assert isinstance(DOUBLES[name]().details, LoadedDetails)

"""Kept traces of an engine whose calls are its steps: each begins with a checkpoint that its agent wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fdtrace.recorder.flight.flight_plan import SECOND, FlightPlan
from fdtrace.recorder.trace.trace import open_trace
from tests.recorder.driven_flight import PROMPT, DrivenFlight
from tests.recorder.helpers import query

PLAN = FlightPlan(window_ns=16 * SECOND, after_ns=2 * SECOND)
ODD = 285
"""The step that exceeds the limit: a trace is kept of it."""

KILLED = range(45, 146, 10)
"""A kept trace begins with one of these steps: the window reaches so far back."""


def flown(directory: Path, *, kills: bool = False) -> Path:
    """The trace that is kept of 300 steps, ten a second. Before each fifth of ten steps comes a checkpoint; before each
    tenth one of which a request is missing. `kills`: the collector is killed within each of the former.
    """
    flight = DrivenFlight(directory, PLAN, ["exceeded"], rows=3)

    def kill() -> None:
        flight.publish()
        flight.close_here()
        flight.collect_anew()

    for number in range(300):
        ts = number * SECOND // 10
        if number % 10 == 5:
            flight.checkpoint(ts - SECOND // 50, between=kill if kills and number in KILLED else lambda: None)
        elif number and number % 10 == 0:
            flight.checkpoint(ts - SECOND // 50, missing=1)
        flight.step(ts, tokens=99 if number == ODD else 1)
        if number % 20 == 19:
            flight.publish()
    flight.end()
    (path,) = flight.directory.kept
    return path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flown(tmp_path_factory.mktemp("flight") / "fl")


def test_it_begins_with_the_step_of_a_whole_checkpoint(kept: Path) -> None:
    ((first, last, count),) = query(kept, "SELECT min(step), max(step), count(*) FROM step")
    assert first % 10 == 5
    assert (last, count) == (299, 300 - first)
    assert (
        ODD - first >= 140
    )  # ten steps a second, 16 s before the trigger, but the first checkpoint of its segment
    assert query(kept, "SELECT min(call), count(*) FROM call") == [(first, count)]


def test_what_was_there_is_found_in_the_engines_order(kept: Path) -> None:
    found = query(kept, "SELECT step, request, detail FROM event WHERE kind = 'found' ORDER BY ts")
    ((first,),) = query(kept, "SELECT min(step) FROM step")
    assert {step for step, *_ in found} == {first}
    engine, *requests, cached = found
    assert json.loads(engine[2])["num_requests"] == 3
    assert len(json.loads(cached[2])["cached_blocks"]) == 3
    ran = query(kept, f"SELECT request, num_computed_tokens FROM step_request WHERE step = {first}")
    told = {number: json.loads(text)["num_total_tokens"] for _, number, text in requests}
    assert told == dict(ran)
    assert query(kept, "SELECT count(*) FROM event WHERE kind = 'checkpoint'") == [(0,)]
    with open_trace(kept) as trace:
        running = trace.recording().details.initial
        assert [one.request for one in running] == [number for _, number, _ in requests]


def test_only_requests_that_came_later_have_an_arrival(kept: Path) -> None:
    ((first,),) = query(kept, "SELECT min(step) FROM step")
    rows = query(kept, "SELECT request, arrived_step, num_prompt_tokens FROM request ORDER BY request")
    found = {number for (number,) in query(kept, "SELECT request FROM event WHERE kind = 'found'")} - {None}
    assert {number for number, arrived, _ in rows if arrived is None} == found
    assert all(arrived >= first for _, arrived, _ in rows if arrived is not None)
    assert {prompt for *_, prompt in rows} == {PROMPT}


def test_a_collector_that_is_killed_within_a_checkpoint_is_followed_by_one_that_goes_on(
    tmp_path: Path,
) -> None:
    """Whichever checkpoint the kept trace begins with: its last frame came to the next collector."""
    path = flown(tmp_path / "flight", kills=True)
    ((first,),) = query(path, "SELECT min(step) FROM step")
    assert first in KILLED
    assert len(query(path, "SELECT request FROM event WHERE kind = 'found'")) == 5

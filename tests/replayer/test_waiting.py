"""Who waits, how long, behind whom: by hand-made lives, and against what FastDeploy's own scheduler decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.wait_figures import blocking_requests, request_rows, totals_of, wait_rows
from fdtrace.replayer.analysis.waiting import Waits, waits_from, waits_of
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.history.history import History
from fdtrace.replayer.history.lives import RequestLives
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns

CaseOf = Callable[[str], dict[str, Any]]
GoldenOf = Callable[[str, str], list[dict[str, Any]]]
RecordingOf = Callable[..., Recording]


def lives_of_rows(
    rows: list[tuple[int, int, str, int, int]], arrived: list[int], ended: list[int], **more: Any
) -> RequestLives:
    """Lives of requests a, b, …; a row is a step, a request, a kind, its tokens, and those computed before."""
    step, request, kind, tokens, computed = (np.array(column) for column in zip(*rows, strict=True))
    accepted = np.zeros(len(rows), np.int64)
    batches = BatchRowColumns(step, request, kind == "prefill", tokens, computed, accepted)
    names = [chr(ord("a") + i) for i in range(len(arrived))]
    return RequestLives(names, np.array(arrived), np.array(ended), batches, **more)


def waits_in(lives: RequestLives, num_steps: int, reasons: str = "blocks") -> Waits:
    """Their waits in so many steps, each with the same reason."""
    columns = {"step": np.arange(num_steps) + 100, "not_admitted": np.full(num_steps, reasons, object)}
    return waits_from("made", lives, columns)


def shown(waits: Waits) -> list[tuple[str, str, int, int | None]]:
    """Request, kind, first step and step in which it ran, with steps from 0."""
    return [
        (
            row["request_id"],
            row["kind"],
            row["since_step"] - 100,
            row["until_step"] and row["until_step"] - 100,
        )
        for row in wait_rows(waits)
    ]


def test_a_wait_runs_from_what_a_request_did_to_what_it_does_next() -> None:
    rows = [
        (0, 0, "prefill", 8, 0),
        (3, 0, "prefill", 8, 8),  # no chunk in 1 and 2
        (4, 0, "decode", 1, 16),
        (6, 0, "decode", 1, 17),  # no decode in 5
        (8, 0, "prefill", 18, 0),  # preempted in 7: 18 tokens again
        (9, 0, "decode", 1, 18),
        (2, 1, "prefill", 4, 0),  # came before 1
        (3, 1, "decode", 1, 4),  # ran no more, and did not end
    ]
    waits = waits_in(lives_of_rows(rows, [0, 1, 5], [9, MISSING, MISSING]), 10)
    assert shown(waits) == [
        ("a", "prefill", 1, 3),
        ("b", "queued", 1, 2),
        ("b", "stopped", 4, None),
        ("a", "decode", 5, 6),
        ("c", "queued", 5, None),
        ("a", "preempted", 7, 8),
    ]
    totals = totals_of(waits)
    assert (totals.num_restarts, totals.num_discarded_tokens) == (1, 17)
    assert (totals.num_starved_prefills, totals.max_prefill_gap) == (1, 2)
    assert (totals.num_stopped, totals.num_never_ran, totals.num_queued) == (1, 1, 2)
    assert totals.share_computed_again == 17 / (8 + 8 + 18 + 4)


def test_a_preempted_request_is_the_head_and_who_came_first_after_it() -> None:
    rows = [
        (0, 0, "decode", 1, 40),
        (6, 0, "prefill", 41, 0),
        (7, 1, "prefill", 4, 0),
        (8, 2, "prefill", 4, 0),
    ]
    waits = waits_in(lives_of_rows(rows, [0, 2, 2], [6, 7, 8]), 9)
    heads = {head.request_id: head for head in blocking_requests(waits)}
    assert (heads["a"].first_step, heads["a"].num_steps, heads["a"].num_behind) == (101, 5, 2)
    assert heads["a"].num_steps_behind == 4 * 2  # b and c, in 2 to 5
    assert (heads["b"].num_steps, heads["b"].num_steps_behind) == (1, 1)
    assert (heads["c"].num_steps, heads["c"].num_steps_behind) == (1, 0)
    behind = {row["request_id"]: (row["behind"], row["num_head_steps"]) for row in wait_rows(waits)}
    assert behind["b"] == ("a", 1)
    assert behind["c"] == ("a", 1)
    assert totals_of(waits).steps_blocked == {"blocks": 7}


def test_a_preempted_request_passes_those_that_wait_already() -> None:
    rows = [(0, 0, "prefill", 8, 0), (2, 0, "decode", 1, 8), (6, 0, "prefill", 9, 0), (7, 1, "prefill", 4, 0)]
    waits = waits_in(lives_of_rows(rows, [0, 0], [6, 7]), 8)
    heads = {head.request_id: (head.first_step, head.num_steps) for head in blocking_requests(waits)}
    assert heads == {"a": (103, 3), "b": (100, 4)}  # b in 0 to 2 and in 6


def test_a_wait_ends_with_its_request() -> None:
    """A client gives up: nobody waits behind it any more."""
    rows = [(0, 0, "prefill", 8, 0), (7, 2, "prefill", 4, 0)]
    waits = waits_in(lives_of_rows(rows, [0, 1, 2], [0, 4, 7]), 8)
    assert shown(waits) == [("b", "queued", 1, 4), ("c", "queued", 2, 7)]
    assert totals_of(waits).num_never_ran == 0
    heads = {head.request_id: head.num_steps for head in blocking_requests(waits)}
    assert heads == {"b": 3, "c": 3}


def test_blocks_are_held_from_getting_them_to_joining() -> None:
    held = {
        "held_from": np.array([0, 2, MISSING]),
        "held_to": np.array([3, MISSING, MISSING]),
        "held_blocks": np.array([5, 7, MISSING]),
    }
    lives = lives_of_rows([(4, 0, "prefill", 4, 0)], [0, 1, 1], [MISSING] * 3, **held)
    waits = waits_in(lives, 6)
    assert shown(waits) == [
        ("a", "not_joined", 0, 3),
        ("b", "queued", 1, 2),
        ("c", "queued", 1, None),
        ("b", "not_joined", 2, None),
        ("a", "joined", 3, 4),
        ("a", "stopped", 5, None),
    ]
    totals = totals_of(waits)
    assert (totals.num_not_joined, totals.num_never_joined, totals.max_blocks_not_joined) == (2, 1, 12)


def test_times_run_from_the_arrival_to_the_call_of_the_first_step() -> None:
    rows = [(0, 0, "prefill", 4, 0), (2, 0, "decode", 1, 4), (2, 1, "prefill", 4, 0)]
    times = {
        "starts_us": np.array([0.0, 1000.0, 2500.0]),
        "arrived_us": np.array([np.nan, 700.0]),
    }
    waits = waits_in(lives_of_rows(rows, [0, 1], [MISSING] * 2, **times), 3)
    assert [(row["kind"], row["us"]) for row in wait_rows(waits)] == [("decode", 1500.0), ("queued", 1800.0)]


def _brute(case: dict[str, Any], golden: list[dict[str, Any]]) -> tuple[Counter[str], Counter[str]]:
    """Of each request, the steps with tokens in which it was there and ran nothing; and its preemptions."""
    waited, preempted = Counter[str](), Counter[str]()
    ended: set[str] = set()
    for line in golden:
        preempted.update(line["preempted"])
        if line["tokens"]:
            ran = {row[0] for row in line["rows"]}
            there = (spec["id"] for spec in case["requests"] if spec["arrival"] <= line["step"])
            waited.update(name for name in there if name not in ran and name not in ended)
        ended |= {*line["finished"], *line["aborted"], *(name for name, _ in line["errors"])}
    return waited, preempted


@pytest.mark.parametrize("version", ["original", "release_2_6"])
@pytest.mark.parametrize("name", ["preemptions", "tight_blocks", "speculative", "no_speculation"])
def test_each_step_without_a_request_is_a_step_of_a_wait(
    name: str, version: str, case_of: CaseOf, golden_of: GoldenOf, recording_of: RecordingOf
) -> None:
    formula = BUILTIN[version]
    recording = recording_of(case_of(name), golden_of(name, version), formula.name, version)
    history = Experiment(recording).reschedule(formula)
    waits = waits_of(history)
    assert waits is not None
    waited, preempted = _brute(case_of(name), golden_of(name, version))
    rows = request_rows(waits)
    assert {row["request_id"]: row["num_steps"] for row in rows if row["num_steps"]} == waited
    restarts = {row["request_id"]: row["num_restarts"] for row in rows if row["num_restarts"]}
    assert restarts == preempted
    assert restarts or name != "preemptions"


def _rows_are_those_of_each_step(history: History) -> int:
    assert history.lives is not None
    lives = history.lives()
    assert lives is not None
    rows, steps = lives.rows, history.columns["step"].tolist()
    found: list[set[tuple[Any, ...]]] = [set() for _ in steps]
    for row in zip(
        rows.step.tolist(),
        (lives.request_ids[i] for i in rows.request.tolist()),
        *(
            column.tolist()
            for column in (rows.prefill, rows.num_tokens, rows.num_computed_tokens, rows.num_accepted_tokens)
        ),
        strict=True,
    ):
        found[row[0]].add(row[1:])
    assert (np.diff(rows.step) >= 0).all()
    for i in range(0, len(steps), 7):
        assert found[i] == {
            (
                row.request_id,
                row.kind == "prefill",
                row.num_tokens,
                row.num_computed_tokens,
                row.num_accepted_tokens,
            )
            for row in history.rows(steps[i])
        }
    return len(rows.step)


@pytest.mark.parametrize("name", ["speculative", "preemptions", "aborts"])
def test_the_rows_of_all_steps_are_those_of_each(
    name: str, case_of: CaseOf, golden_of: GoldenOf, recording_of: RecordingOf
) -> None:
    recording = recording_of(case_of(name), golden_of(name, "original"), "original")
    history = Experiment(recording).reschedule(BUILTIN["pr7499"])
    assert _rows_are_those_of_each_step(history) > 1000

"""Recorded deployments, replayed under what recorded them: every call and every forward comes out as it was."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from fdtrace.recorder import schema
from fdtrace.recorder.collector.tables import columns_of, create, insert
from fdtrace.recorder.trace.call_order import CallOrder
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.details import recording_of
from fdtrace.recorder.trace.read_tables import engine_info
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.fidelity import recorded_formula
from fdtrace.replayer.analysis.wait_figures import totals_of
from fdtrace.replayer.analysis.waiting import waits_of
from fdtrace.replayer.config import ORIGINAL, RELEASE_2_6
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.history.history import Fidelity, History
from fdtrace.replayer.model.found_events import ReserveAtStart
from fdtrace.replayer.replay.deployment_replay import requests_at_worker
from fdtrace.replayer.replay.recorded_pipeline import pipeline_of
from fdtrace.replayer.workload.from_recording import workload_from_recording

DATA = Path(__file__).parents[1] / "data" / "deployments"
NAMES = sorted(path.name.removesuffix(".json.gz") for path in DATA.glob("*.json.gz"))


def tables_of(db: duckdb.DuckDBPyConnection, name: str) -> None:
    """Make the tables of the recording of that name."""
    tables = json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))
    for table in schema.TABLES:
        columns = tables.get(table.name, {})
        none = [None] * len(next(iter(columns.values()), []))  # for columns that a later schema brought
        rows = list(zip(*(columns.get(column, none) for column in table.names), strict=True))
        create(db, table.name, table)
        if rows:
            insert(db, table.name, table, columns_of(table, rows))


def opened(name: str) -> Recording:
    """The recording of that name, read as from any trace, and in memory."""
    with duckdb.connect() as db:
        tables_of(db, name)
        (row,) = db.execute("FROM engine").fetchall()
        engine = engine_info(dict(zip(schema.ENGINE.names, row, strict=True)))
        return recording_of(db, engine, ()).loaded()


@pytest.fixture(scope="module", params=NAMES)
def recording(request: pytest.FixtureRequest) -> Recording:
    return opened(request.param)


@pytest.fixture(scope="module")
def tight() -> Recording:
    return opened("tight")


def replayed(recording: Recording, formula: str | None = None) -> History:
    name = formula or recorded_formula(recording)
    assert name is not None
    return Experiment(recording).reschedule(BUILTIN[name])


def fidelity_of(history: History) -> Fidelity:
    assert history.outcome.fidelity is not None
    return history.outcome.fidelity


def order_of(recording: Recording) -> CallOrder:
    assert recording.details.order is not None
    return recording.details.order


def with_order(recording: Recording, **changes: Any) -> Recording:
    details: Any = recording.details
    return replace(recording, details=replace(details, order=replace(order_of(recording), **changes)))


def test_every_call_and_every_forward_is_reproduced(recording: Recording) -> None:
    order = order_of(recording)
    assert (order.did["did"] == "chunk").any()
    history = replayed(recording)
    fidelity = fidelity_of(history)
    assert fidelity.calls is not None
    assert fidelity.calls.departure is None
    assert fidelity.calls.num_equal == fidelity.calls.num_calls == int(order.calls["num_calls"].sum())
    decided = recording.num_steps - fidelity.num_left_out
    assert (fidelity.num_equal, fidelity.num_steps, fidelity.first_divergence) == (decided, decided, None)
    assert history.outcome.order == "recorded"
    if (
        not recording.details.initial
    ):  # else some had tasks on their way to the worker, which counts as a stall here
        assert history.outcome.num_stalls == int(recording.steps["num_stalled"].sum())


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_left_out_only_if_their_call_was_not_recorded(name: str) -> None:
    fidelity = fidelity_of(replayed(opened(name)))
    assert fidelity.num_left_out == (2 if name == "first_chunk" else 0)


def test_where_the_state_at_the_first_call_is_missing_no_order_is_replayed() -> None:
    """As in the ring of a flight recorder that has dropped its beginning."""
    with duckdb.connect() as db:
        tables_of(db, "kept_prefix_caching")
        db.execute("DELETE FROM event WHERE kind = 'found'")
        (row,) = db.execute("FROM engine").fetchall()
        engine = engine_info(dict(zip(schema.ENGINE.names, row, strict=True)))
        recording = recording_of(db, engine, ()).loaded()
    assert recording.details.order is None
    assert replayed(recording).outcome.order == "lockstep"


def test_a_step_of_a_request_that_the_calls_had_only_refused_is_left_out() -> None:
    """The engine's recording ended before the call that handed it out, and the worker's a moment later."""
    with duckdb.connect() as db:
        tables_of(db, "decode_role")
        query = (
            "SELECT c.call, request, step FROM call_request c JOIN step_request s USING (engine_id, request) "
            "WHERE did = 'chunk' ORDER BY c.call DESC, step LIMIT 1"
        )
        ((call, request, step),) = db.execute(query).fetchall()
        db.execute(f"DELETE FROM call_request WHERE call >= {call}")
        db.execute(f"DELETE FROM call WHERE call >= {call}")
        (row,) = db.execute("FROM engine").fetchall()
        recording = recording_of(db, engine_info(dict(zip(schema.ENGINE.names, row, strict=True))), ())
        assert request in order_of(recording).changes["request"]
        fidelity = fidelity_of(replayed(recording))
    assert fidelity.num_steps == list(recording.steps["step"]).index(step)
    assert fidelity.num_left_out == recording.num_steps - fidelity.num_steps > 0
    assert fidelity.share == 1


def test_a_first_chunk_on_its_way_reaches_the_worker() -> None:
    """Its request had run nothing when the recording began, but a call before it had handed out the whole prompt."""
    recording = opened("first_chunk")
    order = order_of(recording)
    known = {first.request for first in recording.details.initial}
    coming = [first for first in requests_at_worker(recording, order) if first.request not in known]
    assert [(first.num_computed_tokens, first.decoding) for first in coming] == [(0, False)]
    assert coming[0].request not in order.did["request"][order.did["did"] == "chunk"]


def test_tasks_from_before_the_recording_reach_the_worker_in_their_forward() -> None:
    """Without that the requests that they are for run too early: their first steps differ."""
    recording = opened("attached")
    begins = int(recording.steps["step"][0])
    late = [first for first in recording.details.initial if first.first_step > begins]
    assert late
    details: Any = recording.details
    there = tuple(replace(first, first_step=begins) for first in details.initial)
    fidelity = fidelity_of(replayed(replace(recording, details=replace(details, initial=there))))
    assert fidelity.calls is not None
    assert fidelity.calls.departure is None
    assert fidelity.first_divergence == begins


def with_left_before(recording: Recording, *, freed: bool) -> Recording:
    """As if a request had left before the first call; its blocks come back before that call, or never."""
    changes = order_of(recording).changes
    found = json.dumps({"place": "leaving", "number": 0, "num_blocks": 5})
    rows = [("found", found), ("freed", '{"number": 0}')][: 1 + freed]
    columns: dict[str, Any] = {name: list(column) for name, column in changes.items()}
    for kind, detail in reversed(rows):
        row = {name: column[0] for name, column in changes.items()}
        for name, value in (row | {"kind": kind, "detail": detail, "request": MISSING}).items():
            columns[name].insert(0, value)
    return with_order(recording, changes={name: np.array(column) for name, column in columns.items()})


def test_a_request_that_had_left_before_holds_its_blocks_until_they_are_freed(tight: Recording) -> None:
    fidelity = fidelity_of(replayed(with_left_before(tight, freed=True)))
    assert fidelity.calls is not None
    assert (fidelity.calls.share, fidelity.calls.num_left_out, fidelity.share) == (1, 0, 1)
    kept = fidelity_of(replayed(with_left_before(tight, freed=False))).calls
    assert kept is not None
    assert kept.departure is not None
    (difference,) = kept.departure.differences
    assert difference[0] == "free blocks"
    assert int(difference[1]) == int(difference[2]) + 5


def test_under_another_formula_its_blocks_are_free_at_once(tight: Recording) -> None:
    expected, begun_so = (
        replayed(one, "pr7499").outcome for one in (tight, with_left_before(tight, freed=True))
    )
    assert (begun_so.num_steps, begun_so.peak_tokens) == (expected.num_steps, expected.peak_tokens)


def test_another_formula_is_replayed_as_a_pipeline(tight: Recording) -> None:
    history = replayed(tight, "pr7499")
    assert history.outcome.order == "pipeline"
    assert history.outcome.fidelity is None
    assert (history.outcome.num_exceeded, history.outcome.peak_tokens) == (
        0,
        tight.engine.max_num_batched_tokens,
    )
    assert history.outcome.pipeline is not None
    assert history.outcome.pipeline.first_token_p50_ms > 0


def test_another_policy_begins_with_its_own_reserve(tight: Recording) -> None:
    """The recorded one keeps 16 blocks free for each request: that is no ratio."""
    pipeline = pipeline_of(tight, workload_from_recording(tight))
    assert pipeline is not None
    kinds = [
        {type(event) for event in pipeline.beginning_of(policy).initial_events}
        for policy in (ORIGINAL, RELEASE_2_6)
    ]
    assert [ReserveAtStart in one for one in kinds] == [True, False]
    run = pipeline.replay(BUILTIN["pr7623"], RELEASE_2_6).run
    assert run.scheduler.new_token_ratio is not None
    assert run.scheduler.new_token_ratio <= 1


@pytest.mark.parametrize(
    "steady", [name for name in NAMES if name != "attached_prefix_caching" and not name.endswith("_role")]
)
def test_the_pipeline_alone_stays_near_what_was_recorded(steady: str) -> None:
    """Without the recorded order, under what recorded it: as many forwards, tokens and preemptions, about.

    These were recorded on busy machines, and are short. In one that is left out the host stood still for 40% of the
    time. In the prefill and decode roles there is no pipeline.
    """
    recording = opened(steady)
    name = recorded_formula(recording)
    assert name is not None
    found = Experiment(recording).in_pipeline(BUILTIN[name])
    assert found is not None
    outcome, steps = found.outcome, recording.steps
    assert abs(outcome.num_steps - recording.num_steps) <= 0.15 * recording.num_steps
    assert abs(outcome.total_tokens - steps["num_tokens"].sum()) <= 0.1 * steps["num_tokens"].sum()
    assert abs(outcome.num_preemptions - np.maximum(steps["num_preempted"], 0).sum()) <= 1
    assert abs(outcome.peak_tokens - steps["num_tokens"].max()) <= 0.05 * steps["num_tokens"].max()


def test_without_its_order_a_recording_is_replayed_in_lockstep(tight: Recording) -> None:
    details: Any = tight.details
    history = replayed(replace(tight, details=replace(details, order=None)))
    assert history.outcome.order == "lockstep"
    fidelity = fidelity_of(history)
    assert fidelity.calls is None
    assert fidelity.share < 1


def test_outputs_that_a_call_did_not_know_make_it_depart(tight: Recording) -> None:
    """What a call counted is what it goes by: without the tokens of one decode it is not extended."""
    did, known = order_of(tight).did, order_of(tight).known
    extended = did["request"][np.flatnonzero(did["did"] == "extended")[0]]
    keep = known["request"] != extended
    told = replayed(with_order(tight, known={name: values[keep] for name, values in known.items()}))
    fidelity = fidelity_of(told)
    assert fidelity.calls is not None
    assert fidelity.calls.departure is not None
    assert "extended" in {name for name, _, _ in fidelity.calls.departure.differences}
    assert fidelity.share < 1


@pytest.mark.parametrize("kind", ["queued", "left", "freed", "requeued"])
def test_each_change_of_the_queues_is_needed(tight: Recording, kind: str) -> None:
    changes = order_of(tight).changes
    lost = np.flatnonzero(changes["kind"] == kind)[0]
    keep = np.arange(len(changes["kind"])) != lost
    history = replayed(with_order(tight, changes={name: values[keep] for name, values in changes.items()}))
    fidelity = fidelity_of(history)
    assert fidelity.calls is not None
    assert fidelity.calls.departure is not None
    assert fidelity.calls.num_equal < fidelity.calls.num_calls


def test_a_departure_says_what_came_before_it(tight: Recording) -> None:
    calls = order_of(tight).calls
    free = calls["num_free_blocks"].copy()
    free[20] += 1
    history = replayed(with_order(tight, calls={**calls, "num_free_blocks": free}))
    departure = fidelity_of(history).calls.departure  # type: ignore[union-attr]
    assert departure is not None
    assert departure.call == calls["call"][20]
    assert [name for name, _, _ in departure.differences] == ["free blocks"]
    told = [text for text in departure.before if text.startswith("call ")]
    assert [text.split(":")[0] for text in told] == [
        f"call {departure.call - 2}",
        f"call {departure.call - 1}",
    ]


def test_the_order_is_a_value(tight: Recording) -> None:
    assert order_of(tight) == order_of(opened("tight"))
    assert order_of(tight) != order_of(opened("aborts_prefix_caching"))


@pytest.mark.parametrize("formula", [None, "pr7499"])
def test_its_waits_are_known(tight: Recording, formula: str | None) -> None:
    """In the recorded order, and as a pipeline under another formula."""
    history = replayed(tight, formula)
    assert history.outcome.order == ("recorded" if formula is None else "pipeline")
    waits = waits_of(history)
    assert waits is not None
    rows, steps = waits.lives.rows, history.columns["step"].tolist()
    for entry in range(0, len(steps), 7):
        here = rows.step == entry
        names = [waits.lives.request_ids[i] for i in rows.request[here].tolist()]
        found = zip(
            names, rows.num_tokens[here].tolist(), rows.num_computed_tokens[here].tolist(), strict=True
        )
        expected = [
            (row.request_id, row.num_tokens, row.num_computed_tokens) for row in history.rows(steps[entry])
        ]
        assert list(found) == expected
    totals = totals_of(waits)
    assert totals.num_requests == len(waits.lives.request_ids)
    assert totals.num_queued > 0
    assert sum(totals.steps_blocked.values()) <= int((history.columns["num_waiting"] > 0).sum())


def test_the_cached_blocks_of_ended_requests_are_needed() -> None:
    """Without them requests find fewer blocks in the prefix cache than they did, and more are free than were."""
    recording = opened("attached_prefix_caching")
    changes = order_of(recording).changes
    details = [json.loads(detail) for detail in changes["detail"]]
    blocks = [block for detail in details for block in detail.get("blocks", ())]
    assert any(num_sharing == 0 for _, _, num_sharing, *_ in blocks)
    kept = np.array([detail.get("place") != "cached" for detail in details])
    texts = [json.dumps({k: v for k, v in detail.items() if k != "cache_block"}) for detail in details]
    without = {**changes, "detail": np.array(texts, dtype=object)}
    without = {name: values[kept] for name, values in without.items()}
    fidelity = fidelity_of(replayed(with_order(recording, changes=without)))
    assert fidelity.calls is not None
    assert fidelity.calls.departure is not None


def test_a_slot_that_was_lost_before_the_recording_is_needed() -> None:
    """A request had ended while it was being aborted: with its slot more requests run."""
    recording = opened("attached_prefix_caching")
    changes = order_of(recording).changes
    kept = np.array([json.loads(detail).get("place") != "aborting" for detail in changes["detail"]])
    assert not kept.all()
    without = {name: values[kept] for name, values in changes.items()}
    calls = fidelity_of(replayed(with_order(recording, changes=without))).calls
    assert calls is not None
    assert calls.departure is not None
    assert "running" in [name for name, _, _ in calls.departure.differences]


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_another_formula_in_a_role_is_in_lockstep_and_says_so(role: str) -> None:
    experiment = Experiment(opened(f"{role}_role"))
    own, other = (experiment.reschedule(BUILTIN[name]).outcome for name in ("original", "pr7499"))
    assert (own.order, own.modelled) == ("recorded", ())
    assert other.order == "lockstep"
    (note,) = other.modelled
    assert note.startswith(f"a deployment's {role} instance was recorded, and is replayed in lockstep")

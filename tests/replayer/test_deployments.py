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
from fdtrace.recorder.trace.details import recording_of
from fdtrace.recorder.trace.loading import engine_info
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.fidelity import recorded_formula
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.history.history import Fidelity, History

DATA = Path(__file__).parents[1] / "data" / "deployments"
NAMES = sorted(path.name.removesuffix(".json.gz") for path in DATA.glob("*.json.gz"))


def opened(name: str) -> Recording:
    """The recording of that name, read as from any trace, and in memory."""
    tables = json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))
    with duckdb.connect() as db:
        for table in schema.TABLES:
            columns = tables.get(table.name, {})
            rows = list(zip(*(columns.get(column, []) for column in table.names), strict=True))
            create(db, table.name, table)
            if rows:
                insert(db, table.name, table, columns_of(table, rows))
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
    assert (order.did["did"] == "preempted").any() or (order.did["num_needed_blocks"] >= 0).any()
    history = replayed(recording)
    fidelity = fidelity_of(history)
    assert fidelity.calls is not None
    assert fidelity.calls.departure is None
    assert fidelity.calls.num_equal == fidelity.calls.num_calls == int(order.calls["num_calls"].sum())
    assert (fidelity.num_equal, fidelity.first_divergence) == (recording.num_steps, None)
    assert history.outcome.order == "recorded"
    assert history.outcome.num_stalls == int(recording.steps["num_stalled"].sum())


def test_another_formula_is_replayed_in_lockstep(tight: Recording) -> None:
    history = replayed(tight, "pr7499")
    assert history.outcome.order == "lockstep"
    assert history.outcome.fidelity is None


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

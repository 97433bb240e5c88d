"""The call behind a step and the lag of the engine on the screen, from a recorded deployment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import duckdb
import numpy as np
import pytest

from fdtrace.recorder.step_calls import read_lags, read_step_calls, read_step_lags
from fdtrace.recorder.trace.file import add_schema_views
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.explain_ordered import OrderedExplainer
from fdtrace.replayer.analysis.fidelity import recorded_policy
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.tui.app import ReplayApp
from fdtrace.tui.panes.chart_pane import ChartPane
from fdtrace.tui.panes.chart_rows import IN_LOCKSTEP
from fdtrace.tui.panes.series import LAG, Series
from fdtrace.tui.sources import Sources
from tests.replayer.test_deployments import opened, tables_of
from tests.tui.screens import formula_replay, inspector_of, quiet

WIDE, NARROW = (200, 50), (80, 24)


@pytest.fixture(scope="module")
def recording() -> Recording:
    return opened("tight")


@pytest.fixture(scope="module")
def db() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as db:
        tables_of(db, "tight")
        add_schema_views(db)
        yield db


def app_of(recording: Recording, db: duckdb.DuckDBPyConnection, step: int) -> ReplayApp:
    lags = read_lags(db, 0)
    assert lags is not None
    rows = (
        Experiment(recording).reschedule(BUILTIN["original"]).rows
    )  # the recording is in memory without its own
    sources = Sources(
        rows=rows,
        calls=lambda at: read_step_calls(db.cursor(), 0, at, lags),
        lags=lambda: read_step_lags(db.cursor(), 0, lags),
    )
    return ReplayApp(recording, [formula_replay(recording, "original")], sources=sources, step=step)


def first_stall(recording: Recording) -> int:
    return int(recording.steps["step"][np.flatnonzero(recording.steps["num_stalled"] > 0)[0]])


async def test_the_inspector_shows_the_call_and_who_waited(
    recording: Recording, db: duckdb.DuckDBPyConnection
) -> None:
    step = first_stall(recording)
    async with app_of(recording, db, step).run_test(size=WIDE) as pilot:
        app = await quiet(pilot)
        await pilot.press("enter")
        await quiet(pilot)
        said = " ".join(inspector_of(app).split())
        lags = read_lags(db, 0)
        assert lags is not None
        found = read_step_calls(db, 0, step, lags)
        assert found is not None
        assert found.of_step is not None
        assert f"call {found.of_step.call}, begun" in said
        assert "forwards behind" in said or "forward behind" in said or "taken in all outputs" in said
        assert "who waited for which call" in said
        for request in found.stalled:
            assert f"{request.request_id}: stalls" in said


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_the_lag_is_a_track_of_digits(
    recording: Recording, db: duckdb.DuckDBPyConnection, size: tuple[int, int]
) -> None:
    async with app_of(recording, db, first_stall(recording)).run_test(size=size) as pilot:
        app = await quiet(pilot)
        pane = app.panes[0]
        assert pane.series is not None
        assert pane.series.history.columns[LAG].max() > 0
        assert lag_of(pane) == min(9, pane.series.peak_lag)


async def test_a_replay_has_its_own_lag_or_says_why_not(
    recording: Recording, db: duckdb.DuckDBPyConnection
) -> None:
    """In recorded order calls know what the recorded ones knew; through the pipeline, what it says that they know."""
    lags = read_lags(db, 0)
    assert lags is not None
    behind = read_step_lags(db, 0, lags)
    experiment = Experiment(recording)
    in_order = experiment.reschedule(BUILTIN["original"])
    assert in_order.columns[LAG].tolist() == behind.tolist()
    predicted = experiment.in_pipeline(BUILTIN["original"])
    assert predicted is not None
    mean = behind[behind >= 0].mean()
    assert abs(predicted.columns[LAG][predicted.columns[LAG] >= 0].mean() - mean) < 0.5 * mean
    async with app_of(recording, db, first_stall(recording)).run_test(size=WIDE) as pilot:
        app = await quiet(pilot)
        pane = app.panes[1]
        assert pane.series is not None
        assert lag_of(pane) == min(9, pane.series.peak_lag)
        history = pane.series.history
        columns = {name: values for name, values in history.columns.items() if name != LAG}
        outcome = replace(history.outcome, order="lockstep")
        pane.job = pane.job.filled(history, Series(replace(history, columns=columns, outcome=outcome)))
        pane.redraw()
        await quiet(pilot)
        assert IN_LOCKSTEP in track_of(pane)


def track_of(pane: ChartPane) -> str:
    rows = [pane.render_line(y).text for y in range(pane.content_size.height)]
    (track,) = [row for row in rows if row.lstrip().startswith("lag")]
    return track


def lag_of(pane: ChartPane) -> int:
    """The highest digit of its track."""
    return max(int(cell) for cell in track_of(pane).partition("lag")[2] if cell.isdigit())


async def test_the_lag_can_be_a_condition(recording: Recording, db: duckdb.DuckDBPyConnection) -> None:
    async with app_of(recording, db, first_stall(recording)).run_test(size=WIDE) as pilot:
        app = await quiet(pilot)
        app.debugger.toggle_watch(LAG)
        await pilot.pause()
        value = app.session.recorded.value(LAG, app.session.cursor)
        assert f"{LAG}" in str(app.query_one("#watches").render())
        assert str(value) in str(app.query_one("#watches").render())


def test_a_replay_in_recorded_order_is_explained_by_its_own_calls(recording: Recording) -> None:
    """Each step's decisions are those of the calls that were replayed, forwards and backwards."""
    experiment = Experiment(recording)
    explainer = OrderedExplainer(
        recording, lambda: experiment.workload, BUILTIN["original"], recorded_policy(recording)
    )
    order = recording.details.order
    assert order is not None
    extended = order.did["call"][order.did["did"] == "extended"].tolist()
    steps = dict(zip(order.calls["call"].tolist(), order.calls["first_step"].tolist(), strict=True))
    numbers = recording.steps["step"].tolist()
    looked = 0
    for call in [*extended[5:25:4], *extended[2:8]]:
        if steps.get(call, -1) not in numbers:
            continue
        decisions = explainer.explain(steps[call]).decisions
        recorded = [
            request
            for at, did, request in zip(
                order.did["call"], order.did["did"], order.did["request"], strict=True
            )
            if at == call and did == "extended"
        ]
        told = [decision.extended for decision in decisions if len(decision.extended) == len(recorded)]
        assert told, (call, steps[call])
        looked += 1
    assert looked > 5

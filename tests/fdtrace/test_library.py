"""`import fdtrace`: what a program or a notebook does with a trace."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest

import fdtrace
from fdtrace.cli import main
from fdtrace.library.engine_recording import EngineRecording
from fdtrace.library.result_table import ResultTable
from fdtrace.replayer.analysis.explain_ordered import OrderedExplainer
from fdtrace.replayer.analysis.fidelity import recorded_policy
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.formulas import BUILTIN
from tests.replayer.test_deployments import opened

CASES = Path(__file__).parents[1] / "data" / "cases"
OWN = "mine: max_num_batched_tokens - num_running_decodes * (num_speculative_tokens + 1)"


@pytest.fixture(scope="module")
def recording(trace: Path) -> fdtrace.EngineRecording:
    """What a program keeps of the trace, which is closed."""
    with fdtrace.open(trace) as opened:
        return opened.recording()


@pytest.fixture(scope="module")
def runs(recording: fdtrace.EngineRecording) -> fdtrace.Runs:
    """Three formulas beside the recording."""
    return fdtrace.replay(recording, ["original", "pr7499", OWN])


def test_a_trace_answers_queries(trace: Path) -> None:
    with fdtrace.open(str(trace)) as opened:
        assert opened.sql("SELECT count(*) AS n FROM step").df()["n"].tolist() == [300]
        assert opened.sql("FROM exceeded").columns[:2] == ["engine_id", "step"]
        assert "300 steps of 1 engine, complete" in repr(opened)
        with pytest.raises(fdtrace.UsageError, match="COPY is refused"):
            opened.sql("COPY step TO 'x'")
    assert "closed" in repr(opened)


def test_what_is_no_trace_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    with pytest.raises(fdtrace.TraceError, match="there is no file"):
        fdtrace.open(tmp_path / "t.duckdb")


def test_a_recording_outlives_its_file(trace: Path, tmp_path: Path) -> None:
    copy = tmp_path / "t.duckdb"
    shutil.copy(trace, copy)
    opened = fdtrace.open(copy)
    recording = opened.recording()
    opened.close()
    copy.unlink()
    again = pickle.loads(pickle.dumps(recording))
    assert again == recording
    assert fdtrace.replay(again, "pr7499")["pr7499"].outcome.num_exceeded == 0
    assert (
        repr(recording)
        == f"<EngineRecording of {recording.engine.name} {recording.engine.version}: 300 steps, 299 requests>"
    )


def test_null_is_nan_nat_or_none_and_never_minus_one(recording: fdtrace.EngineRecording, trace: Path) -> None:
    steps, requests = recording.steps, recording.requests
    assert np.isnan(steps["device_used_bytes"]).all()
    assert steps["ts"].dtype == np.dtype("datetime64[ns]")
    assert np.isnat(requests["finished_at"]).sum() == 16
    assert {row["finish_reason"] for row in requests} > {None}
    for table in (steps, requests):
        assert not any(
            (column == -1).any()
            for column in map(table.__getitem__, table.columns)
            if column.dtype.kind in "if"
        )
        assert -1 not in {
            value for row in table for value in row.values() if not isinstance(value, np.datetime64)
        }
    with duckdb.connect(str(trace), read_only=True) as db:
        first = db.execute("SELECT epoch_ns(ts) FROM step ORDER BY step LIMIT 1").fetchall()[0][0]
    assert steps["ts"][0].astype(int) == first


def test_replays_say_what_the_command_says(
    trace: Path, runs: fdtrace.Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(trace), "--json", "-f", "original", "-f", "pr7499", "-f", OWN]) == 0
    said = {one["name"]: one for one in json.loads(capsys.readouterr().out)["formulas"]}
    assert list(runs) == list(said) == ["recorded", "original", "pr7499", "mine"]
    for row in runs.table():
        mine = said[row["name"]]
        assert {
            name: row[name] for name in ("how", "num_steps", "num_exceeded", "peak_tokens", "budget_use")
        } == {name: mine[name] for name in ("how", "num_steps", "num_exceeded", "peak_tokens", "budget_use")}
        assert runs[row["name"]].exceeded["step"].tolist() == mine["exceeded_steps"]


def test_a_run_tells_its_steps_its_requests_and_why(
    recording: fdtrace.EngineRecording, runs: fdtrace.Runs, trace: Path
) -> None:
    run = runs["pr7499"]
    assert len(run.steps) == run.outcome.num_steps
    assert run.steps.df()["num_tokens"].max() <= run.limit
    assert (runs["original"].exceeded["excess_tokens"] > 0).all()
    name = str(recording.requests["request_id"][5])
    rows = run.request(name).rows()
    assert rows[0]["kind"] == "prefill"
    assert {row["request_id"] for row in run.requests(rows[0]["step"])} >= {name}
    reasons = run.explain(rows[0]["step"])
    assert any(name in line for line in reasons.reasons)
    assert f"step {rows[0]['step']}: budget {reasons.token_budget}" in str(reasons)
    with fdtrace.open(trace) as opened:
        query = f"SELECT step, num_tokens FROM request_timeline WHERE request_id = '{name}' ORDER BY step"
        recorded = opened.sql(query).fetchall()
    assert [(row["step"], row["num_tokens"]) for row in runs["recorded"].request(name)] == recorded


def test_as_recorded(recording: fdtrace.EngineRecording) -> None:
    run = fdtrace.replay(recording, OWN, as_recorded=True)["mine"]
    assert run.how == "as recorded"
    assert len(run.steps) == 300
    assert len(run.request(str(recording.requests["request_id"][5]))) > 0
    with pytest.raises(fdtrace.UsageError, match="has no reasons"):
        run.explain(20)


class Half:
    """Half of the limit."""

    def budget(self, v: object) -> int:
        return v.max_num_batched_tokens // 2  # type: ignore[attr-defined,no-any-return]


def test_formulas_are_texts_classes_and_files(recording: fdtrace.EngineRecording, tmp_path: Path) -> None:
    file = tmp_path / "f.py"
    file.write_text("class Own:\n    def budget(self, v):\n        return 7\n")
    runs = fdtrace.replay(recording, ["exact", OWN, Half, f"{file}:Own"], as_recorded=True)
    assert list(runs) == ["recorded", "exact", "mine", "Half", "Own"]
    assert set(runs["Own"].steps["token_budget"].tolist()) == {7}
    with pytest.raises(fdtrace.UsageError, match="is given twice"):
        fdtrace.replay(recording, ["exact", "exact"])
    with pytest.raises(fdtrace.UsageError, match="no formula"):
        fdtrace.replay(recording, "nothing")
    with pytest.raises(fdtrace.UsageError, match="no formula"):
        fdtrace.replay(recording, [int])
    with pytest.raises(fdtrace.UsageError, match="no formula"):
        fdtrace.replay(recording, [7])  # type: ignore[list-item]


def test_a_budget_below_zero_is_a_number(recording: fdtrace.EngineRecording) -> None:
    run = fdtrace.replay(recording, "below: 0 - 1", as_recorded=True)["below"]
    assert set(run.steps["token_budget"].tolist()) == {-1}


def test_a_workload_is_simulated_from_a_dictionary_or_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    path = CASES / "speculative.json"
    runs = fdtrace.simulate(path, ["original", "pr7499"])
    assert main(["simulate", str(path), "-f", "original", "-f", "pr7499", "--json"]) in (0, 1)
    said = json.loads(capsys.readouterr().out)["schedulers"]
    for row, other in zip(runs.table(), said, strict=True):
        assert (row["name"], row["num_steps"], row["num_exceeded"]) == (
            other["name"],
            other["num_steps"],
            other["num_exceeded"],
        )
    run = fdtrace.simulate(json.loads(path.read_text()), "pr7499")["pr7499"]
    assert run.steps["num_tokens"].tolist() == [line["tokens"] for line in run.decisions]
    with pytest.raises(fdtrace.UsageError, match="there is no run 'other'"):
        runs["other"]
    with pytest.raises(fdtrace.UsageError):
        fdtrace.simulate({"requests": "none"})


def test_reprs_tell(runs: fdtrace.Runs) -> None:
    assert "<ReplayRun pr7499 (rescheduled, lockstep): 0 of " in repr(runs)
    assert repr(runs["original"].exceeded).startswith("<ResultTable original, exceeded: ")
    page = runs.table()._repr_html_()
    assert "<th>num_exceeded</th>" in page
    assert "<td>pr7499</td>" in page


def test_a_table_shows_markup_as_text() -> None:
    table = ResultTable.of_rows(
        [{"a": "<script>\x1b", "b": None, "c": 1.5}, {"a": "x", "b": 2, "c": math.nan}]
    )
    assert "&lt;script&gt;\\x1b" in table._repr_html_()
    assert table.rows()[0] == {"a": "<script>\x1b", "b": None, "c": 1.5}
    assert table.rows()[1]["c"] is None
    with pytest.raises(fdtrace.UsageError, match="there is no column 'd'"):
        table["d"]


def test_a_deployment_in_recorded_order_is_explained_by_its_own_calls() -> None:
    recording = opened("tight")
    run = fdtrace.replay(EngineRecording(recording), ["original"])["original"]
    assert run.outcome.order == "recorded"
    workload = Experiment(recording).workload
    own = OrderedExplainer(recording, lambda: workload, BUILTIN["original"], recorded_policy(recording))
    num_tokens = dict(zip(*(recording.steps[name].tolist() for name in ("step", "num_tokens")), strict=True))
    for step in range(50, 150, 10):
        reasons = run.explain(step)
        assert reasons.num_tokens == num_tokens[step]
        decisions = own.explain(step).decisions
        assert reasons.reasons == tuple(each.text for decision in decisions for each in decision.reasons)

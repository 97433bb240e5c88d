"""`fdtrace simulate -o`: a trace that every command opens, and that replays as what was simulated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fdtrace
from fdtrace.cli import main
from fdtrace.recorder.schema import VIEWS

DATA = Path(__file__).parents[1] / "data"
CASES = sorted((DATA / "cases").glob("*.json"))
RANDOM = sorted((DATA / "random").glob("*.json"))
ROLES = [path for path in RANDOM if path.stem.startswith(("prefill", "decode"))]
MIXED = [path for path in RANDOM if path not in ROLES]
Captured = pytest.CaptureFixture[str]


def simulated(workload: Path, version: str, trace: Path) -> fdtrace.SimulatedRun:
    """The simulation of a workload, written to a trace."""
    run = fdtrace.simulate(workload, version)[version]
    run.write(trace)
    return run


def ran(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What requests ran in a step, by id."""
    names = ("request_id", "kind", "num_tokens", "num_computed_tokens")
    return sorted(tuple(row[name] for name in names) for row in rows)


def assert_replays_as_simulated(run: fdtrace.SimulatedRun, trace: Path) -> None:
    """The replay of the trace under the same formula runs the same requests in each step, in the same state."""
    runs = fdtrace.replay(trace, run.name)
    replayed, lines = runs[run.name], [line for line in run.decisions if line["tokens"]]
    assert runs["recorded"].steps["num_tokens"].tolist() == [line["tokens"] for line in lines]
    for name, key in (
        ("num_running", "running"),
        ("num_waiting", "waiting"),
        ("num_free_blocks", "free_blocks"),
    ):
        assert replayed.steps[name].tolist() == [line[key] for line in lines], name
    fidelity = replayed.outcome.fidelity
    assert fidelity is not None
    assert fidelity.share == 1.0
    for step, line in [*enumerate(lines)][:: max(1, len(lines) // 100)]:
        found = ran(replayed.requests(step).rows())
        assert found == sorted((row[0], row[1], row[2], row[3]) for row in line["rows"])


@pytest.mark.parametrize("version", ["original", "release_2_6"])
@pytest.mark.parametrize("workload", [*CASES, *MIXED], ids=lambda path: path.stem)
def test_a_replay_of_the_trace_is_the_simulation(workload: Path, version: str, tmp_path: Path) -> None:
    trace = tmp_path / "t.duckdb"
    assert_replays_as_simulated(simulated(workload, version, trace), trace)


SENT_AT_ONCE = {
    "max_num_batched_tokens": 128,
    "max_num_seqs": 4,
    "num_blocks": 40,
    "block_size": 16,
    "max_model_len": 512,
    "role": "prefill",
    "requests": [
        {"id": f"p{i}", "arrival": i, "prompt": 60 + 40 * (i % 3), "output": 9, "send_after": i % 2}
        for i in range(12)
    ],
}
"""A prefill instance that has something to run in each of its calls."""


@pytest.mark.parametrize("version", ["original", "release_2_6"])
@pytest.mark.parametrize(
    "workload", ["prefill0", "prefill1", "prefill2", "decode0", "decode1", "sent at once"]
)
def test_it_is_so_in_the_roles(workload: str, version: str, tmp_path: Path) -> None:
    """Also where calls ran nothing while requests waited to join or to be sent: these calls are no steps."""
    path, trace = DATA / "random" / f"{workload}.json", tmp_path / "t.duckdb"
    if workload == "sent at once":
        path = tmp_path / "w.json"
        path.write_text(json.dumps(SENT_AT_ONCE))
    assert_replays_as_simulated(simulated(path, version, trace), trace)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "t.duckdb"
    assert main(["simulate", str(DATA / "cases" / "preemptions.json"), "-f", "pr7499", "-o", str(path)]) == 0
    return path


def test_the_trace_says_that_it_is_simulated(trace: Path, capsys: Captured) -> None:
    capsys.readouterr()
    assert main(["info", str(trace), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trace"]["ended_by"] == "simulate"
    assert "no server ran" in found["trace"]["notes"][0]
    assert found["problems"] == []
    (engine,) = found["engines"]
    row = engine["engine"]
    assert (row["name"], row["version"], row["pid"]) == ("fastdeploy", "simulated", None)
    config = json.loads(row["config"])
    assert config["simulated"]["by"] == "pr7499"
    assert (config["formula"], config["policy"]) == ("pr7499", "original")
    assert {"ts", "schedule_us", "forward_us"} <= set(engine["unknown"])


def test_every_command_opens_it(trace: Path, tmp_path: Path, capsys: Captured) -> None:
    for view in VIEWS:
        assert main(["sql", str(trace), f"FROM {view.name}", "--format", "csv"]) == 0  # as fast as it is long
    assert main(["check", str(trace), "-f", "pr7499"]) == 0
    assert main(["replay", str(trace), "-f", "pr7499", "--report"]) == 0
    assert "fidelity 100.0%" in capsys.readouterr().out
    assert main(["replay", str(trace), "-f", "pr7499", "--svg", str(tmp_path / "screen.svg")]) == 0
    assert "pr7499" in (tmp_path / "screen.svg").read_text()
    assert main(["knobs", str(trace)]) == 0
    recording = fdtrace.open(trace).recording()
    assert recording.requests["arrived_at"].astype(int).max() < 0  # NaT: a simulation has no clock


def test_a_variant_of_it_goes_by_steps_since_it_has_no_times(trace: Path, capsys: Captured) -> None:
    assert main(["replay", str(trace), "-w", "few: max_num_seqs=4, formula=pr7499", "--json"]) == 0
    few = json.loads(capsys.readouterr().out.splitlines()[-1])["formulas"][1]
    assert few["clock"]["kind"] == "steps"
    runs = fdtrace.replay(trace, variants={"few": {"max_num_seqs": 4, "formula": "pr7499"}})
    assert runs["few"].outcome.num_steps == few["num_steps"]
    assert main(["replay", str(trace), "-f", "pr7499", "--arrivals", "recorded", "--report"]) == 2
    assert "has no times" in capsys.readouterr().err


def test_a_hang_is_in_its_notes(tmp_path: Path, capsys: Captured) -> None:
    trace = tmp_path / "t.duckdb"
    workload = str(DATA / "cases" / "full_reservation.json")
    assert main(["simulate", workload, "-f", "pr7499", "-o", str(trace)]) == 1
    capsys.readouterr()
    assert main(["replay", str(trace), "-f", "pr7499", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert any("hangs at step 121" in note for note in found["notes"])
    recorded, replayed = found["formulas"]
    assert replayed["num_unfinished"] == recorded["num_unfinished"] > 0
    assert replayed["fidelity"]["share"] == 1.0


def test_nothing_is_overwritten(trace: Path, tmp_path: Path, capsys: Captured) -> None:
    before = trace.read_bytes()
    workload = str(DATA / "cases" / "speculative.json")
    assert main(["simulate", workload, "-f", "original", "-o", str(trace)]) == 3
    assert "exists already" in capsys.readouterr().err
    assert trace.read_bytes() == before
    assert main(["simulate", workload, "-f", "original", "-o", str(tmp_path / "no" / "t.duckdb")]) == 3
    assert "cannot be written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.duckdb"]


def test_several_runs_write_a_file_each(tmp_path: Path) -> None:
    workload = str(DATA / "cases" / "speculative.json")
    options = [
        "-f",
        "original",
        "-w",
        "few: max_num_seqs=8, formula=pr7499",
        "-o",
        str(tmp_path / "t.duckdb"),
    ]
    assert main(["simulate", workload, *options]) == 0
    with (
        fdtrace.open(tmp_path / "t-few.duckdb") as few,
        fdtrace.open(tmp_path / "t-original.duckdb") as original,
    ):
        assert few.recording().engine.max_num_seqs == 8
        assert original.recording().engine.max_num_seqs > 8


def test_what_a_trace_cannot_hold_is_refused(tmp_path: Path, capsys: Captured) -> None:
    """A threshold that a reader would take for that of a release which enlarges it."""
    case = json.loads((DATA / "cases" / "speculative.json").read_text())
    enlarged = 12 * (case["num_speculative_tokens"] + 1)
    workload = tmp_path / "w.json"
    workload.write_text(json.dumps({**case, "prealloc_dec_block_slot_num_threshold": enlarged}))
    assert main(["simulate", str(workload), "-f", "original", "-o", str(tmp_path / "t.duckdb")]) == 2
    said = capsys.readouterr().err
    assert "cannot be written as a trace" in said
    assert "prealloc_threshold" in said
    assert not (tmp_path / "t.duckdb").exists()


def test_settings_of_vllm_are_not_in_a_workload(tmp_path: Path, capsys: Captured) -> None:
    workload, trace = str(DATA / "cases" / "speculative.json"), tmp_path / "t.duckdb"
    variant = "v: scheduler=vllm, long_prefill_token_threshold=64"
    assert main(["simulate", workload, "-w", variant, "-o", str(trace)]) == 2
    assert "holds the whole configuration that vllm derived" in capsys.readouterr().err
    assert not trace.exists()


def test_a_library_simulates_variants() -> None:
    workload = DATA / "cases" / "speculative.json"
    runs = fdtrace.simulate(workload, variants={"few": {"max_num_seqs": 8, "formula": "pr7499"}})
    assert list(runs) == ["few"]
    case = json.loads(workload.read_text())
    same = fdtrace.simulate({**case, "max_num_seqs": 8}, "pr7499")["pr7499"]
    assert runs["few"].decisions == same.decisions
    both = fdtrace.simulate(workload, "pr7499", variants="few: max_num_seqs=8, formula=pr7499")
    assert list(both) == ["pr7499", "few"]
    assert both["few"].decisions == same.decisions
    with pytest.raises(fdtrace.UsageError, match="by which formula"):
        fdtrace.simulate(workload, variants="few: max_num_seqs=8")
    with pytest.raises(fdtrace.UsageError, match="has arrivals"):
        fdtrace.simulate(workload, variants="few: formula=pr7499, arrivals=closed")

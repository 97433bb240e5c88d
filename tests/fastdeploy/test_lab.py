"""FastDeploy's real scheduler, model runner and deployment, recorded, against what the lab itself wrote.

FASTDEPLOY_SRC  a checkout of FastDeploy
LAB_DIR         the directory of fastdeploy_lab.py, fastdeploy_deployment.py and cases/
FASTDEPLOY_PYTHON  a Python that has what FastDeploy's scheduler imports (default: the one that runs the tests)
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fdtrace.recorder.trace.trace import open_trace
from fdtrace.replayer import ORIGINAL, POLICIES
from fdtrace.replayer.analysis.fidelity import recorded_formula
from fdtrace.replayer.experiment import Experiment, reschedule
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.history.history import Fidelity, History
from fdtrace.scheduler_option import given_schedulers
from tests.fastdeploy.conftest import Stand
from tests.fastdeploy.lab import differences, lab_lines
from tests.fastdeploy.test_attach import wrapped_methods

SOURCE, LAB = os.environ.get("FASTDEPLOY_SRC", ""), Path(os.environ.get("LAB_DIR", "."))
PYTHON = os.environ.get("FASTDEPLOY_PYTHON", sys.executable)
CASES = sorted(path.stem for path in (LAB / "cases").glob("*.json"))

GOLDEN = Path(__file__).parents[1] / "data" / "golden"

pytestmark = [
    pytest.mark.skipif(not SOURCE, reason="FASTDEPLOY_SRC is not set: no FastDeploy to record"),
    pytest.mark.skipif(not CASES, reason="LAB_DIR is not set: no case of the lab to run"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

DEPLOYMENT = {
    "seed": 1, "max_num_seqs": 64, "num_blocks": 1500, "max_num_batched_tokens": 1024, "num_speculative_tokens": 4,
}  # fmt: skip


def case_file(directory: Path, case: dict[str, Any]) -> str:
    path = directory / "case.json"
    path.write_text(json.dumps(case))
    return str(path)


def counts_of(output: str) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads(
        [line for line in output.splitlines() if line.startswith('{"worker"')][-1]
    )
    return counts


@pytest.fixture
def lab(stand: Stand) -> Stand:
    stand.environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    stand.environment["FD_LOG_DIR"] = str(stand.directory / "fastdeploy")
    return stand


def record_case(lab: Stand, name: str, worker: str) -> tuple[Path, Path]:
    """A trace of a case of the lab, and what the lab itself wrote. `worker`: where its forward runs."""
    case = json.loads((LAB / "cases" / f"{name}.json").read_text())
    # The lab's runner has no MTP proposer, which the real code asks for in a forward without tokens.
    case.update(worker=worker, spec_method="ngram")
    out = lab.directory / "out.jsonl"
    command = [PYTHON, str(LAB / "fastdeploy_lab.py"), "batch", case_file(lab.directory, case), str(out)]
    done = lab.fdtrace("record", "-o", str(lab.trace), "--", *command, timeout=900)
    assert done.returncode == 0, done.stderr
    return lab.trace, out


_recorded: dict[str, tuple[Path, Path]] = {}


def recorded_inline(lab: Stand, name: str) -> tuple[Path, Path]:
    """The same with the forward in the engine's process, made once for the tests that only read it."""
    if name not in _recorded:
        _recorded[name] = record_case(lab, name, "inline")
    return _recorded[name]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("worker", ["inline", "process"])
def test_a_trace_equals_what_the_lab_wrote(lab: Stand, name: str, worker: str) -> None:
    recorded = recorded_inline(lab, name) if worker == "inline" else record_case(lab, name, worker)
    assert differences(*recorded) == []


@pytest.mark.parametrize("name", CASES)
def test_a_recording_rescheduled_is_what_the_real_scheduler_decides(lab: Stand, name: str) -> None:
    """Recorded from this checkout, whichever version it is; rescheduled under each version of the scheduler.

    Until a request decodes once more than it did in the recording: how many drafts that accepts is not recorded. It
    happens where the recorded version hangs, or aborts a request earlier.
    """
    path, out = recorded_inline(lab, name)
    with open_trace(path) as trace:
        recording = trace.recording()
        for version in sorted(path.name.partition(".")[0] for path in (GOLDEN / name).iterdir()):
            policy = POLICIES.get(version, ORIGINAL)
            formula = BUILTIN[policy.formula if version in POLICIES else version]
            history = reschedule(recording, formula, policy)
            lines = gzip.decompress((GOLDEN / name / f"{version}.jsonl.gz").read_bytes()).splitlines()
            golden = [line for line in map(json.loads, lines) if line["tokens"]]
            steps = slice(num_recorded(lab_lines(out), golden))
            assert [decided(history, at) for at in range(len(history.columns["step"]))[steps]] == [
                [sorted(line["rows"]), line["free_blocks"]] for line in golden[steps]
            ], version


def num_recorded(lines: list[Any], golden: list[Any]) -> int | None:
    """The steps of another version that follow from what these lines ran; None: all."""
    left = Counter(row[0] for line in lines for row in line["rows"] if row[1] == "decode")
    for at, line in enumerate(golden):
        for row in line["rows"]:
            if row[1] == "decode":
                left[row[0]] -= 1
                if left[row[0]] < 0:
                    return at + 1
    return None


def decided(history: History, at: int) -> list[Any]:
    rows = history.rows(int(history.columns["step"][at]))
    told = sorted([row.request_id, row.kind, row.num_tokens, row.num_computed_tokens] for row in rows)
    return [told, int(history.columns["num_free_blocks"][at])]


def test_a_deployment_recorded_from_its_start_agrees_with_its_own_counts(lab: Stand) -> None:
    command = [PYTHON, str(LAB / "fastdeploy_deployment.py"), case_file(lab.directory, DEPLOYMENT), "10"]
    done = lab.fdtrace("record", "-o", str(lab.trace), "--", *command, timeout=900)
    assert done.returncode == 0, done.stderr
    counts = counts_of(done.stdout)
    own = counts["worker"]
    with open_trace(lab.trace) as trace:
        found = trace.rows(
            "SELECT count(*) AS forwards, sum(num_tokens) AS tokens, max(num_tokens) AS most, "
            "count(*) FILTER (num_tokens > 1024) AS over_limit, sum(num_draft_tokens) AS drafts, "
            "sum(num_accepted_tokens) AS accepted, sum(num_stalled) AS stalled FROM step"
        )[0]
        ended = trace.rows("SELECT count(*) AS n FROM request WHERE finish_reason IN ('stop', 'length')")[0][
            "n"
        ]
        exceeded = trace.rows("SELECT count(*) AS n FROM exceeded")[0]["n"]
    assert (found["forwards"], found["tokens"], found["most"]) == (
        own["forwards"],
        own["tokens"],
        own["max_tokens"],
    )
    assert (found["over_limit"], exceeded, found["drafts"]) == (own["over"], own["over"], own["drafts"])
    assert found["stalled"] == own["stalled"]
    # Clients stop asking before the worker stops, so the last ends may have reached the engine and no client.
    assert counts["clients"]["finished"] <= ended <= own["finished"]
    # The lab counts what a forward will accept before it runs it, and ends in the middle of one.
    assert own["accepted"] - 64 * 4 <= found["accepted"] <= own["accepted"]


TIGHT = {
    "seed": 3, "max_num_seqs": 32, "max_model_len": 4096, "max_num_batched_tokens": 512, "num_blocks": 80,
    "num_speculative_tokens": 3, "prompts": [40, 300, 600], "outputs": [200, 400, 600], "abort": 0.1,
}  # fmt: skip


def assert_reproduced(path: Path) -> None:
    """Under what recorded it every call is decided as it was, and nearly every forward runs what it ran."""
    with open_trace(path) as trace:
        recording = trace.recording()
        name = recorded_formula(recording)
        assert name is not None
        assert_all_calls(reschedule(recording, BUILTIN[name]).outcome.fidelity)


def assert_reproduced_by_the_real_code(path: Path) -> None:
    """The same through the scheduler of the checkout that was recorded."""
    with open_trace(path) as trace:
        recording = trace.recording()
        experiment, engine = Experiment(recording), recording.engine
        (given,) = given_schedulers([f"fastdeploy={SOURCE}"], PYTHON)
        with given.open(experiment.workload.config, engine.env, engine.config) as scheduler:
            assert_all_calls(experiment.reschedule(scheduler).outcome.fidelity)


def assert_all_calls(fidelity: Fidelity | None) -> None:
    assert fidelity is not None
    assert fidelity.calls is not None
    assert fidelity.calls.departure is None
    assert fidelity.calls.num_equal == fidelity.calls.num_calls > 0
    assert fidelity.share >= 0.995, fidelity.explanation


@pytest.mark.parametrize(
    "more",
    [{}, {"prefix_caching": True, "prefix_groups": 6, "shared_tokens": 300}, {"num_speculative_tokens": 0}],
    ids=["few blocks", "prefix caching", "no speculation"],
)
def test_a_deployment_is_replayed_call_by_call(lab: Stand, more: dict[str, Any]) -> None:
    case = case_file(lab.directory, TIGHT | more)
    command = [PYTHON, str(LAB / "fastdeploy_deployment.py"), case, "10"]
    done = lab.fdtrace("record", "-o", str(lab.trace), "--", *command, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_reproduced(lab.trace)


def test_the_prefix_cache_is_found_in_the_middle(lab: Stand) -> None:
    """Blocks of requests that had ended are in it when the recording begins, and are found or evicted later."""
    caching = {
        "prefix_caching": True, "prefix_groups": 6, "shared_tokens": 300, "prompts": [300, 600, 900],
        "outputs": [5, 10, 20], "num_blocks": 110, "max_num_seqs": 4, "backlog": 3,
    }  # fmt: skip
    command = [PYTHON, str(LAB / "fastdeploy_deployment.py"), case_file(lab.directory, TIGHT | caching), "30"]
    process = subprocess.Popen(
        command, env=lab.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith("ready"))
    time.sleep(8)
    done = lab.fdtrace("attach", str(process.pid), "-o", str(lab.trace), "--duration", "10")
    process.communicate(timeout=900)
    assert done.returncode == 0, done.stderr
    with open_trace(lab.trace) as trace:
        rows = trace.rows("SELECT detail FROM event WHERE kind = 'found' AND detail LIKE '%\"cached\"%'")
    blocks = [block for row in rows for block in json.loads(row["detail"])["blocks"]]
    assert any(num_sharing == 0 for _, _, num_sharing, *_ in blocks)
    assert any(place is not None for *_, place in blocks)
    assert_reproduced(lab.trace)
    assert_reproduced_by_the_real_code(lab.trace)


def test_traces_that_a_flight_keeps_are_replayed_call_by_call(lab: Stand) -> None:
    """They begin with checkpoints, in the middle of the load."""
    caching = {"prefix_caching": True, "prefix_groups": 6, "shared_tokens": 300}
    case, flight = case_file(lab.directory, TIGHT | caching), lab.directory / "flight"
    command = [PYTHON, str(LAB / "fastdeploy_deployment.py"), case, "45"]
    options = ("--flight", "10s", "-o", str(flight), "--", *command)
    recording = subprocess.Popen(
        [sys.executable, "-m", "fdtrace", "record", *options],
        env=lab.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert recording.stdout is not None
    next(line for line in recording.stdout if line.startswith("ready"))
    for seconds in (25, 6):  # the ring has dropped its beginning then
        time.sleep(seconds)
        assert lab.fdtrace("keep", str(flight)).returncode == 0
    _, said = recording.communicate(timeout=300)
    assert recording.returncode == 0, said
    kept = sorted(flight.glob("*-keep.duckdb"))
    assert len(kept) == 2
    for path in kept:
        with open_trace(path) as trace:
            found = trace.rows("SELECT min(call) AS call FROM event WHERE kind = 'found'")
        assert found[0]["call"] > 0
        assert_reproduced(path)
        assert_reproduced_by_the_real_code(path)


OPEN = {
    "seed": 3, "max_num_seqs": 32, "max_model_len": 4096, "max_num_batched_tokens": 512, "num_blocks": 400,
    "num_speculative_tokens": 3, "prompts": [40, 300, 900], "outputs": [10, 60, 200], "rate": 10, "num_requests": 60,
}  # fmt: skip


def test_a_deployment_is_predicted_from_what_clients_sent(lab: Stand) -> None:
    """Without the recorded order: what its parts took and its clients sent gives as many steps over, about."""
    command = [PYTHON, str(LAB / "fastdeploy_deployment.py"), case_file(lab.directory, OPEN), "120"]
    done = lab.fdtrace("record", "-o", str(lab.trace), "--", *command, timeout=300)
    assert done.returncode == 0, done.stderr
    with open_trace(lab.trace) as trace:
        fetched = trace.rows(
            "SELECT count(*) AS n FROM request r JOIN event e USING (engine_id, request) "
            "WHERE e.kind = 'queued' AND e.ts < r.arrived_at"
        )
        assert fetched == [{"n": 0}]
        recording = trace.recording()
        found = Experiment(recording).in_pipeline(BUILTIN[recorded_formula(recording) or ""])
    assert found is not None
    outcome, tokens = found.outcome, recording.steps["num_tokens"]
    over = int((tokens > recording.engine.max_num_batched_tokens).sum())
    assert outcome.num_unfinished == 0
    assert abs(outcome.num_steps - recording.num_steps) <= 0.15 * recording.num_steps
    assert abs(outcome.num_exceeded - over) <= 0.15 * over
    assert abs(outcome.total_tokens - tokens.sum()) <= 0.02 * tokens.sum()


def test_a_deployment_is_attached_to_in_the_middle_twice(lab: Stand) -> None:
    command = [PYTHON, str(LAB / "fastdeploy_deployment.py"), case_file(lab.directory, DEPLOYMENT), "45"]
    process = subprocess.Popen(
        command, env=lab.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    ready = next(line for line in process.stdout if line.startswith("ready"))
    pids = [int(pid) for pid in ready.split()[1:]]
    time.sleep(2)
    recorded = []
    for attempt, seconds in enumerate((10, 4)):
        path = lab.directory / f"{attempt}.duckdb"
        done = lab.fdtrace("attach", str(process.pid), "-o", str(path), "--duration", str(seconds))
        assert done.returncode == 0, done.stderr
        assert [wrapped_methods(pid) for pid in pids] == [[], []]
        assert_reproduced(path)
        with open_trace(path) as trace:
            assert trace.rows("SELECT count(*) AS n FROM step WHERE token_budget IS NOT NULL")[0]["n"] > 100
            apart = (
                "SELECT step FROM step JOIN (SELECT step, sum(num_tokens) AS ran FROM step_request GROUP BY step) "
                "USING (step) WHERE ran <> num_tokens"
            )
            assert trace.rows(apart) == []
            recorded.append(trace.rows("SELECT count(*) AS n, sum(num_tokens) AS tokens FROM step")[0])
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0
    counts = counts_of(output)
    assert sum(one["n"] for one in recorded) < counts["worker"]["forwards"]
    assert sum(one["tokens"] for one in recorded) < counts["worker"]["tokens"]
    running = counts["clients"]["requests"] - counts["clients"]["finished"]
    assert running <= 64 + 4  # at the end some run and some wait; none was lost

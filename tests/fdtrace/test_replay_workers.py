"""Replays of one recording in worker processes: the same as in one process, and nothing is left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import fdtrace
from fdtrace.cli import main
from fdtrace.library.engine_recording import EngineRecording
from fdtrace.library.recording_worker import RecordingWorker, replay_orders, replayed_order
from fdtrace.library.replay_variants import VariantReplayer, chosen_variants
from fdtrace.replay_workers import (
    LEAST_STEPS,
    STEPS_OF_A_REAL_SCHEDULER,
    ReceivedReaders,
    SubmittedReplays,
    num_replay_processes,
)
from fdtrace.replayer import outcome_dict
from fdtrace.replayer.history.history import History
from fdtrace.worker_processes import WorkerProcesses, num_processors, report_share
from tests.replayer.test_clock import timed

ROOT = Path(__file__).parents[2]
OWN = "mine: max_num_batched_tokens - num_running_decodes * (num_speculative_tokens + 1)"
FORMULAS = ["original", "pr7499", OWN]
VARIANTS = ["few: max_num_seqs=8, formula=pr7499", "timed: formula=pr7438, arrivals=recorded"]

FAILING = """
class Failing:
    "Fails at its hundredth call."
    calls = 0

    def budget(self, v):
        Failing.calls += 1
        if Failing.calls > 100:
            raise ZeroDivisionError("out of budget")
        return 512
"""


@pytest.fixture(scope="module")
def recording(trace: Path) -> fdtrace.EngineRecording:
    """With step times that can be fitted on any machine."""
    with fdtrace.open(trace) as opened:
        return EngineRecording(timed(opened.recording().value))


def runs_in(recording: fdtrace.EngineRecording, jobs: int) -> fdtrace.Runs:
    """Formulas, a class that only this process has, changed settings, and a replay by time."""

    class Local:
        """A class of this function."""

        def budget(self, v: Any) -> int:
            return int(v.max_num_batched_tokens) // 2

    return fdtrace.replay(recording, [*FORMULAS, Local], variants=VARIANTS, slo="ttft=500ms", jobs=jobs)


def all_of(history: History) -> dict[str, Any]:
    """Everything that a history holds, its rows and the lives of its requests too."""
    assert history.request_steps is not None
    assert history.lives is not None
    lives = history.lives()
    assert lives is not None
    steps = history.columns["step"].tolist()
    return {
        "columns": {name: (values.dtype, values.tolist()) for name, values in history.columns.items()},
        "outcome": (repr(history.outcome), outcome_dict(history)),
        "rows": [history.rows(step) for step in (*steps, steps[-1] + 1)],
        "request_steps": [history.request_steps(name) for name in (*lives.request_ids, "nobody")],
        "lives": {
            name: repr(np.asarray(value).tolist()) for name, value in vars(lives).items() if name != "rows"
        },
        "batches": {name: np.asarray(value).tolist() for name, value in vars(lives.rows).items()},
    }


def _is_received(history: History) -> bool:
    return isinstance(getattr(history.rows, "__self__", None), ReceivedReaders)


def test_worker_processes_give_the_same_to_the_last_row(recording: fdtrace.EngineRecording) -> None:
    here, beside = runs_in(recording, 1), runs_in(recording, 2)
    assert list(here) == list(beside)
    by_workers = [name for name in beside if _is_received(beside[name]._history)]
    assert by_workers == ["original", "pr7499", "mine", "few", "timed"]  # not the recording, and not `Local`
    for name in here:
        if name == "recorded":
            continue
        one, other = all_of(here[name]._history), all_of(beside[name]._history)
        assert one.keys() == other.keys()
        for part, value in one.items():
            assert value == other[part], (name, part)
        assert here[name].explain(int(here[name].steps["step"][5])) == beside[name].explain(
            int(beside[name].steps["step"][5])
        )


def test_a_command_prints_the_same_by_worker_processes(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.py"
    own.write_text("class Own:\n    def budget(self, v):\n        return v.max_num_batched_tokens // 2\n")
    printed = []
    for jobs in ("1", "2"):
        options = ["--json", "--waits", "-f", "pr7438", "-f", f"{own}:Own", "--jobs", jobs]
        assert main(["replay", str(trace), *options]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[0] == printed[1]


@pytest.fixture(scope="module")
def workers(recording: fdtrace.EngineRecording) -> Iterator[WorkerProcesses]:
    """One worker with the recording."""
    arguments = (recording.value, None, None, None, None, sys.executable, False)
    with WorkerProcesses(1, RecordingWorker, *arguments, num_shares=4) as pool:
        yield pool


def beside(
    recording: fdtrace.EngineRecording, workers: WorkerProcesses, formulas: list[Any]
) -> tuple[list[History], list[int]]:
    """The histories of formulas, and which of them this process computed."""
    chosen = chosen_variants(recording.value, formulas, (), sys.executable)
    replayer = VariantReplayer(recording.value, chosen, None, None, None)
    computed: list[int] = []

    def here(i: int) -> History:
        computed.append(i)
        return replayer.reschedule(chosen[i], None)

    orders = replay_orders(formulas, ())
    submitted = SubmittedReplays(workers, replayed_order, orders)
    found = submitted.histories(here, lambda i: replayer.experiment(chosen[i]).workload, lambda *_: None)
    return found, computed


def test_what_cannot_be_sent_stays_here(recording: fdtrace.EngineRecording, workers: WorkerProcesses) -> None:
    class Local:
        def budget(self, v: Any) -> int:
            return 400

    histories, computed = beside(recording, workers, ["pr7499", Local, "original"])
    assert [history.name for history in histories] == ["pr7499", "Local", "original"]
    assert computed == [1]


def test_a_worker_tells_how_far_it_is(workers: WorkerProcesses) -> None:
    workers.submit(_half_done, 3).result()
    assert list(workers.shares) == [0, 0, 0, 0.5]


def _half_done(state: RecordingWorker, number: int) -> None:
    report_share(number, 0.5)


def test_the_error_of_a_formula_is_the_one_of_a_single_process(
    recording: fdtrace.EngineRecording, workers: WorkerProcesses, tmp_path: Path
) -> None:
    own = tmp_path / "failing.py"
    own.write_text(FAILING)
    errors = []
    for compute in (
        lambda: fdtrace.replay(recording, ["pr7499", f"{own}:Failing"], jobs=1),
        lambda: beside(recording, workers, ["pr7499", f"{own}:Failing"]),
    ):
        with pytest.raises(fdtrace.UsageError, match="out of budget") as caught:
            compute()
        errors.append((str(caught.value), type(caught.value.__cause__)))
    assert errors[0] == errors[1]


def test_a_killed_worker_costs_no_result(recording: fdtrace.EngineRecording) -> None:
    arguments = (recording.value, None, None, None, None, sys.executable, False)
    with WorkerProcesses(1, RecordingWorker, *arguments, num_shares=2) as pool:
        killed = pool.submit(_killed, None)
        histories, computed = beside(recording, pool, ["pr7499", "original"])
        assert isinstance(killed.exception(), BrokenProcessPool)
    assert [history.name for history in histories] == ["pr7499", "original"]
    assert computed == [0, 1]


def _killed(state: RecordingWorker, _: None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


OWNER = """
import signal
from tests.fdtrace.endless_worker import own_worker
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
own_worker()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_is_left_behind(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "own.py"  # without a guard: a worker that imported it would own workers too
    script.write_text(OWNER)
    owner = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert owner.stdout is not None
    worker = psutil.Process(int(owner.stdout.readline()))
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    )
    assert int(status["SigBlk"], 16) >> (signal.SIGINT - 1) & 1  # Ctrl-C is its owner's
    if how is signal.SIGINT:
        os.killpg(owner.pid, how)  # as the terminal does
    else:
        owner.kill()
    worker.wait(60)
    _, complaints = owner.communicate(timeout=60)
    assert owner.returncode == -how
    assert "Process Spawn" not in complaints  # no worker's traceback stands beside the owner's


def test_how_many_processes_pay() -> None:
    three = [False] * 3
    cores = min(3, num_processors())
    many = cores if cores > 1 else 0
    assert num_replay_processes(None, LEAST_STEPS // 3 - 1, three) == 0
    assert num_replay_processes(None, LEAST_STEPS // 3, three) == many
    assert num_replay_processes(None, 10**12, three) == 0  # no memory for that
    assert num_replay_processes(None, LEAST_STEPS // STEPS_OF_A_REAL_SCHEDULER // 3, [True] * 3) == many
    assert num_replay_processes(None, LEAST_STEPS, [False]) == 0
    assert num_replay_processes(8, 10, three) == 3
    assert num_replay_processes(1, 10**9, three) == 0
    with pytest.raises(fdtrace.UsageError, match="0 processes"):
        num_replay_processes(0, 10, three)

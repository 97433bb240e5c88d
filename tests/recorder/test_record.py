"""`fdtrace record`: from the first step to the last, whatever Python the command uses."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.session import Session
from fdtrace.recorder.trace_paths import parts_directory
from tests.recorder.helpers import (
    ENGINE,
    ROOT,
    armed_environment,
    collected,
    finish,
    logged,
    query,
    recorded,
    start_engine,
)

FDTRACE = [sys.executable, "-m", "fdtrace"]


def record(
    path: Path, *command: str, options: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FDTRACE, "record", "-o", str(path), *options, "--", *command],
        cwd=ROOT, text=True, capture_output=True, timeout=900, check=False, env=env,
    )  # fmt: skip


def test_every_step_row_and_request_is_recorded_and_totals_agree(tmp_path: Path) -> None:
    log, trace = tmp_path / "log", tmp_path / "t.duckdb"
    done = record(trace, sys.executable, str(ENGINE), "--steps", "700", "--log", str(log))
    assert done.returncode == 0, done.stderr
    assert recorded(trace) == logged(log)
    assert len(logged(log)) == 700
    ((state, ended_by),) = query(trace, "SELECT state, ended_by FROM trace")
    assert (state, ended_by) == ("complete", "exit 0")
    assert not parts_directory(trace).exists()
    assert_totals_agree(trace)


def assert_totals_agree(trace: Path) -> None:
    """Totals agree with rows, and requests with events."""
    differ = """
        SELECT s.step FROM step s JOIN (
            SELECT step, sum(num_tokens) AS t, sum(num_draft_tokens) AS d, sum(num_accepted_tokens) AS a
            FROM step_request GROUP BY step) r USING (step)
        WHERE s.num_tokens <> r.t OR s.num_draft_tokens <> r.d OR s.num_accepted_tokens <> r.a
           OR s.num_prefill_tokens + s.num_decode_tokens <> s.num_tokens"""
    assert query(trace, differ) == []
    outputs = """
        SELECT r.request_id FROM request r JOIN (
            SELECT request, count(*) FILTER (kind = 'decode') + sum(num_accepted_tokens) + 1 AS made
            FROM step_request GROUP BY request) q USING (request)
        WHERE r.finish_reason = 'length' AND r.num_output_tokens <> q.made"""
    assert query(trace, outputs) == []
    finished = query(trace, "SELECT count(*) FROM request WHERE finish_reason IS NOT NULL")
    assert finished == query(trace, "SELECT count(*) FROM event WHERE kind = 'finished'")
    assert finished[0][0] > 100
    assert query(trace, "SELECT count(*) FROM request WHERE arrived_step IS NULL") == [(0,)]


def test_a_python_without_fdtrace_is_armed_and_its_sitecustomize_still_runs(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False, symlinks=True)
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import os\nopen(os.environ['MARK'], 'w').write('ran')\n")
    log, trace, mark = tmp_path / "log", tmp_path / "t.duckdb", tmp_path / "mark"
    python = str(bare / "bin" / "python")
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(own), "MARK": str(mark)}
    probe = [
        python,
        "-c",
        "import importlib.util as u; print(u.find_spec('recorder'), u.find_spec('fdtrace'))",
    ]
    assert (
        subprocess.run(probe, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
        == "None None\n"
    )
    mark.unlink()
    done = record(trace, python, str(ENGINE), "--steps", "50", "--log", str(log), env=env)
    assert done.returncode == 0, done.stderr
    assert mark.read_text() == "ran"
    assert recorded(trace) == logged(log)


def test_children_of_a_shell_are_engines_of_their_own_and_the_exit_code_is_its(tmp_path: Path) -> None:
    trace, one, two = tmp_path / "t.duckdb", tmp_path / "one", tmp_path / "two"
    run = f"{sys.executable} {ENGINE} --steps 60 --log"
    done = record(trace, "sh", "-c", f"{run} {one}; {run} {two}; exit 7")
    assert done.returncode == 7, done.stderr  # the command's own
    assert recorded(trace, 0) == logged(one)
    assert recorded(trace, 1) == logged(two)


def test_steps_bounds_the_recording_exactly_and_leaves_the_command_running(tmp_path: Path) -> None:
    log, trace = tmp_path / "log", tmp_path / "t.duckdb"
    done = record(
        trace, sys.executable, str(ENGINE), "--steps", "900", "--sleep", "0.001", "--log", str(log),
        options=("--steps", "300"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    whole = logged(log)
    assert len(whole) == 900
    assert recorded(trace) == {step: whole[step] for step in range(300)}
    late = query(trace, "SELECT count(*) FROM event WHERE kind = 'finished' AND step = 299")
    ends = {row[0] for row in whole[299]} - {row[0] for row in whole[300]}
    assert late == [(len(ends),)]


def test_a_command_without_an_engine_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    done = record(tmp_path / "t.duckdb", "true")
    assert done.returncode == 3
    assert "no step of an engine was seen" in done.stderr
    assert "steps in" not in done.stderr, "it names a file that is not there"
    assert list(tmp_path.iterdir()) == []


def test_a_recording_never_overwrites_another(tmp_path: Path) -> None:
    path = tmp_path / "t.duckdb"
    path.write_bytes(b"precious")
    with pytest.raises(TraceError, match="exists already"):
        Session.create(path)
    assert path.read_bytes() == b"precious"


def test_a_forked_engine_writes_a_ring_of_its_own(tmp_path: Path) -> None:
    log, trace = tmp_path / "log", tmp_path / "t.duckdb"
    with collected(trace) as (session, supervisor):
        engine = start_engine("--steps", 200, "--fork", "--log", log, env=armed_environment(session))
        engine.communicate(timeout=900)
        finish(supervisor, "exit 0")
    whole = [logged(log), logged(Path(f"{log}.child"))]
    both = [recorded(trace, 0), recorded(trace, 1)]
    assert sorted(map(len, both)) == sorted(map(len, whole))
    assert [w in both for w in whole] == [True, True]

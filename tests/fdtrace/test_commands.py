"""The commands on a real trace: data on stdout, errors on stderr with what, why and what next, exit codes."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from fdtrace.cli import COMMANDS, main
from fdtrace.recorder import schema
from tests.recorder.helpers import ROOT

Captured = pytest.CaptureFixture[str]


def test_help_names_every_command(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out) > 80


def test_wrong_use_is_exit_code_2(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["replay"])
    assert ended.value.code == 2
    assert "TRACE" in capsys.readouterr().err


def test_info(trace: Path, capsys: Captured) -> None:
    assert main(["info", str(trace)]) == 0
    said = capsys.readouterr().out
    assert "steps      300 (0 to 299)" in said
    assert "exceeded   max_num_batched_tokens in" in said
    assert "not told   num_predicted_tokens" in said
    assert main(["info", "--json", str(trace)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["engines"][0]["steps"]["steps"] == 300


def test_info_says_that_nothing_was_scheduled(trace: Path, tmp_path: Path, capsys: Captured) -> None:
    idle = tmp_path / "idle.duckdb"
    shutil.copy(trace, idle)
    with duckdb.connect(str(idle)) as connection:
        for table in schema.TABLES:
            if table.name != "trace":
                connection.execute(f"DELETE FROM {table.name}")
    assert main(["info", str(idle)]) == 0
    assert "no engine: no scheduling call was recorded" in capsys.readouterr().out


@pytest.mark.parametrize(
    "view", [view.name for view in schema.VIEWS] + [table.name for table in schema.TABLES]
)
def test_every_table_and_view_answers(trace: Path, view: str, capsys: Captured) -> None:
    assert main(["sql", str(trace), f"SELECT count(*) AS n FROM {view}", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("n\n")


def test_sql_formats_hold_the_same_rows(
    trace: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    query = "SELECT step, num_tokens, excess_tokens FROM exceeded ORDER BY step"
    assert main(["sql", str(trace), query, "--format", "csv"]) == 0
    rows = [
        tuple(map(int, row.values()))
        for row in csv.DictReader(io.StringIO(capfdbinary.readouterr().out.decode()))
    ]
    assert len(rows) > 10
    assert main(["sql", str(trace), query, "--format", "json"]) == 0
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert [tuple(json.loads(line).values()) for line in lines] == rows
    out = tmp_path / "rows.parquet"
    assert main(["sql", str(trace), query, "--format", "parquet", "--out", str(out)]) == 0
    assert duckdb.execute(f"FROM '{out}'").fetchall() == rows
    assert main(["sql", str(trace), query]) == 0
    assert len(capfdbinary.readouterr().out.decode().splitlines()) == len(rows) + 1


@pytest.mark.parametrize("query", ["SELEC 1", "SELECT nothing FROM step", "SELECT 1/0::INT FROM nowhere", ""])
def test_a_query_that_cannot_run_says_so(trace: Path, query: str, capsys: Captured) -> None:
    assert main(["sql", str(trace), query]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fdtrace: ")
    assert "next:" in said
    assert "Traceback" not in said


def test_a_trace_is_never_written_to(trace: Path, capsys: Captured) -> None:
    before = trace.read_bytes()
    assert main(["sql", str(trace), "DELETE FROM step"]) == 2
    assert trace.read_bytes() == before


def broken(kind: str, trace: Path, directory: Path) -> Path:
    path = directory / "broken.duckdb"
    if kind == "text":
        path.write_text("no trace at all\n" * 100)
    elif kind == "empty":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "truncated":
        path.write_bytes(trace.read_bytes()[: trace.stat().st_size // 2])
    elif kind == "head only":
        path.write_bytes(trace.read_bytes()[:64])
    elif kind == "other database":
        duckdb.connect(str(path)).execute("CREATE TABLE t (x INT)").close()
    elif kind == "later version":
        shutil.copy(trace, path)
        with duckdb.connect(str(path)) as db:
            db.execute("UPDATE trace SET schema_version = 99, fdtrace_version = '9.9'")
    return path


BROKEN = {
    "text": "is no trace",
    "empty": "is no trace",
    "directory": "is a directory",
    "truncated": "next:",
    "head only": "next:",
    "other database": "is no trace",
    "later version": "pip install -U fdtrace",
    "missing": "there is no file",
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("command", ["info", "sql", "replay", "check"])
def test_a_file_that_is_no_readable_trace(
    kind: str, command: str, trace: Path, tmp_path: Path, capsys: Captured
) -> None:
    path = broken(kind, trace, tmp_path)
    before = sorted(tmp_path.iterdir())
    arguments = {"sql": ["FROM step"], "replay": ["--report"], "check": ["-f", "pr7499"]}.get(command, [])
    assert main([command, str(path), *arguments]) == 3
    said = capsys.readouterr()
    assert BROKEN[kind] in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert sorted(tmp_path.iterdir()) == before


FORMULAS = {
    "mine: 1 +": "mine",
    "mine: nosuch * 2": "nosuch",
    "mine: max_num_batched_tokens / (num_waiting - num_waiting)": "is 0",
    "mine: __import__('os').system('true')": "mine",
    "mine: max_num_batched_tokens.__class__": "mine",
    "mine: 9 ** 9 ** 9": "mine",
    "mine: (lambda: 1)()": "mine",
    "nosuch": "nosuch",
    "/nowhere/my.py:Mine": "no file",
    "original: 1": "built-in",
}


@pytest.mark.parametrize("text", FORMULAS)
@pytest.mark.parametrize("how", [[], ["--as-recorded"]])
def test_a_formula_that_cannot_be_used(text: str, how: list[str], trace: Path, capsys: Captured) -> None:
    assert main(["replay", str(trace), "--report", "-f", text, *how]) == 2
    said = capsys.readouterr()
    assert FORMULAS[text] in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_a_class_of_the_users_own(trace: Path, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "my_formula.py"
    file.write_text(
        "class Mine:\n    def budget(self, v):\n"
        "        return v.max_num_batched_tokens - v.num_running_decodes * (v.num_speculative_tokens + 1)\n"
        "class Bad:\n    pass\n"
    )
    arguments = ["replay", str(trace), "--json", "--as-recorded", "-f", f"{file}:Mine", "-f", "pr7499"]
    assert main(arguments) == 0
    _, mine, builtin = json.loads(capsys.readouterr().out)["formulas"]
    assert (mine["name"], mine["num_exceeded"], mine["peak_tokens"]) == (
        "Mine",
        builtin["num_exceeded"],
        builtin["peak_tokens"],
    )
    assert main(["replay", str(trace), "--report", "-f", f"{file}:Bad"]) == 2
    assert main(["replay", str(trace), "--report", "-f", f"{file}:Missing"]) == 2
    file.write_text("def broken(:\n")
    assert main(["replay", str(trace), "--report", "-f", f"{file}:Mine"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_check_is_for_ci(trace: Path, capsys: Captured) -> None:
    assert main(["check", str(trace), "-f", "pr7499"]) == 0
    assert capsys.readouterr().out.startswith("ok   pr7499: 0 of ")
    assert main(["check", str(trace), "-f", "original", "-f", "pr7499"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("FAIL original")
    assert said[1].startswith("ok   pr7499")
    assert main(["check", str(trace), "-f", "original", "--max-exceeded", "100000"]) == 0
    capsys.readouterr()
    assert main(["check", str(trace)]) == 1, "without -f it checks the default formulas, as its help says"
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == [
        "original:",
        "pr7438:",
        "pr7499:",
    ]


def test_a_hang_and_a_cut_fail_the_check(
    trace: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["check", str(trace), "-f", "nothing: 0"]) == 1
    assert "; hangs at step" in capsys.readouterr().out
    monkeypatch.setattr("fdtrace.replayer.workload.from_recording.STEPS_FACTOR", 0)
    monkeypatch.setattr("fdtrace.replayer.workload.from_recording.STEPS_MORE", 5)
    assert main(["check", str(trace), "-f", "pr7499"]) == 1
    assert "cut at step" in capsys.readouterr().out
    assert main(["replay", str(trace), "-f", "pr7499", "--json"]) == 0
    (_, found) = json.loads(capsys.readouterr().out)["formulas"]
    assert found["hang"] is None
    assert found["cut"]["max_steps"] == 5
    assert main(["replay", str(trace), "-f", "pr7499", "--report"]) == 0
    said = capsys.readouterr().out
    assert "CUT" in said
    assert "by the limit of 5 steps" in said


def test_formulas_lists_names_sources_and_variables(capsys: Captured) -> None:
    assert main(["formulas"]) == 0
    said = capsys.readouterr().out
    for name in ("original", "pr7438", "pr7499", "pr7623", "exact", "ternary", "num_running_decodes"):
        assert name in said
    assert main(["formulas", "--json"]) == 0
    assert {f["name"] for f in json.loads(capsys.readouterr().out)["formulas"]} >= {"original", "pr7499"}


def test_recover_says_when_there_is_nothing_to_recover(trace: Path, capsys: Captured) -> None:
    assert main(["recover", str(trace)]) == 3
    assert "finished trace" in capsys.readouterr().err


def test_attaching_to_what_cannot_be_recorded(tmp_path: Path, capsys: Captured) -> None:
    out = str(tmp_path / "t.duckdb")
    assert main(["attach", "4194303", "-o", out]) == 3
    assert "process" in capsys.readouterr().err
    sleeping = subprocess.Popen(["sleep", "60"])
    threaded = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()",
        ]
    )
    try:
        assert main(["attach", str(sleeping.pid), "-o", out]) == 3
        assert "Python" in capsys.readouterr().err
        task = Path(f"/proc/{threaded.pid}/task")
        while len(list(task.iterdir())) < 2:
            time.sleep(0.05)
        (thread,) = {int(entry.name) for entry in task.iterdir()} - {threaded.pid}
        assert main(["attach", str(thread), "-o", out]) == 3
        assert "thread" in capsys.readouterr().err
    finally:
        for process in (sleeping, threaded):
            process.kill()
            process.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_enough_ends_the_command_quietly(trace: Path) -> None:
    command = f"{sys.executable} -m fdtrace sql {trace} 'FROM step_request' --format csv | head -1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, text=True, capture_output=True, check=False, timeout=900
    )
    assert done.stdout.startswith("engine_id,step,request")
    assert done.stderr == ""


def test_a_command_that_ran_no_step_names_no_trace(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "t.duckdb"
    assert main(["record", "-o", str(out), "--", sys.executable, "-c", "raise SystemExit(5)"]) == 5
    said = capsys.readouterr().err
    assert "nothing was recorded: there is no trace" in said
    assert "steps in" not in said
    assert not out.exists()

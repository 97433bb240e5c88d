"""`fdtrace sql` reads the trace and nothing else, within its limits; what it writes is exact, whole and private."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from fdtrace.cli import main

Captured = pytest.CaptureFixture[str]
STUCK = "SELECT max(len(repeat('x', 2000000000) || repeat('y', 2000000000 + range))) FROM range(64)"
"""DuckDB does not look for an interruption while it builds these texts, nor count their memory."""
ENDLESS = "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t) SELECT max(i) FROM t"
INTERRUPTED = """
import os, signal, sys, threading, time
from fdtrace.cli import main

def interrupt():
    while not any(thread.name == "query" for thread in threading.enumerate()):
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
threading.Thread(target=interrupt, daemon=True).start()
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("COPY (SELECT 1) TO '{out}'", "COPY is refused"),
        ("COPY step TO '{out}' (FORMAT parquet)", "COPY is refused"),
        ("EXPORT DATABASE '{out}'", "EXPORT is refused"),
        ("ATTACH '{secret}' AS other", "ATTACH is refused"),
        ("SET enable_external_access = true", "SET is refused"),
        ("LOAD httpfs", "LOAD is refused"),
        ("CREATE TABLE mine AS SELECT 1", "CREATE is refused"),
        ("DELETE FROM step", "DELETE is refused"),
        ("SELECT 1; COPY (SELECT 1) TO '{out}'", "more than one statement"),
        ("FROM read_text('{secret}')", "asks for more than a trace"),
        ("FROM read_csv('{secret}')", "asks for more than a trace"),
        ("FROM glob('/etc/*')", "asks for more than a trace"),
        ("FROM read_blob('/dev/zero')", "asks for more than a trace"),
        ("FROM read_text('http://127.0.0.1:9/')", "asks for more than a trace"),
        ("FROM '{secret}'", "that query failed"),
        ("SELECT getenv('HOME')", "that query failed"),
        ("EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}'", "asks for more than a trace"),
        ("FROM args", "that query failed"),
        ("", "there is no query"),
        ("-- nothing", "there is no query"),
    ],
)
def test_a_query_reads_the_trace_alone(
    trace: Path, tmp_path: Path, query: str, said: str, capsys: Captured
) -> None:
    secret, out = tmp_path / "secret.txt", tmp_path / "out"
    secret.write_text("mine alone\n")
    assert main(["sql", str(trace), query.format(secret=secret, out=out)]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert "next: " in found.err
    assert "mine alone" not in found.out + found.err
    assert not out.exists()


@pytest.mark.parametrize(
    "query",
    [
        "SHOW TABLES",
        "DESCRIBE step",
        "SUMMARIZE step",
        "EXPLAIN FROM step",
        "PIVOT step_request ON kind USING count(*)",
    ],
)
def test_questions_of_every_kind_are_answered(trace: Path, query: str, capsys: Captured) -> None:
    assert main(["sql", str(trace), query]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_what_it_writes_is_exact_whole_and_private(trace: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"rows[1].{kind}"
    query = "SELECT step, chr(27) || request_id AS id, [1, NULL] AS list, 1.5::DECIMAL(9, 2) AS d FROM request_timeline"
    umask = os.umask(0o022)
    try:
        assert main(["sql", str(trace), query, "--format", kind, "-o", str(out)]) == 0
    finally:
        os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [out.name], "nothing else is left"
    with duckdb.connect() as db:
        read = {"json": db.read_json, "csv": db.read_csv, "parquet": db.read_parquet}[kind]
        written = read(str(out))  # type: ignore[operator]
        count, escapes = written.aggregate("count(*), count(*) FILTER (id[1] = chr(27))").fetchall()[0]
    assert count == escapes > 1000


def test_out_may_be_a_pipe_and_must_not_be_a_directory(trace: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["sql", str(trace), "SELECT 1", "-o", str(tmp_path)]) == 2
    assert "is a directory" in capsys.readouterr().err
    assert main(["sql", str(trace), "SELECT 1", "-o", str(tmp_path / "no" / "rows.csv")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe")
    command = [
        sys.executable,
        "-m",
        "fdtrace",
        "sql",
        str(trace),
        "SELECT 1 AS n",
        "-o",
        str(tmp_path / "pipe"),
    ]
    with subprocess.Popen(command) as process:
        assert (tmp_path / "pipe").read_text() == "n\n1\n"
        assert process.wait(120) == 0


def test_markup_and_control_characters_are_data(trace: Path, capsys: Captured) -> None:
    assert main(["sql", str(trace), "SELECT '[b]x', '[/b]', chr(27) || '[31m' || chr(8238) || chr(155)"]) == 0
    said = capsys.readouterr().out
    assert "[b]x" in said
    assert "[/b]" in said
    assert r"\x1b[31m\u202e\x9b" in said


def test_on_a_terminal_csv_and_json_are_safe_too(trace: Path) -> None:
    for kind in ("csv", "json"):
        master, slave = pty.openpty()
        command = [
            sys.executable,
            "-m",
            "fdtrace",
            "sql",
            str(trace),
            "SELECT chr(155) || 'x' || chr(127) AS a",
            "--format",
            kind,
        ]
        with subprocess.Popen(command, stdout=slave, stderr=subprocess.PIPE):
            os.close(slave)
            said = b""
            while True:
                try:
                    said += os.read(master, 1000)
                except OSError:
                    break
        os.close(master)
        assert rb"\x9bx\x7f" in said


@pytest.mark.parametrize("query", [ENDLESS, STUCK])
def test_a_query_ends_at_its_limit_and_says_it(trace: Path, query: str) -> None:
    command = [
        sys.executable,
        "-m",
        "fdtrace",
        "sql",
        str(trace),
        query,
        "--timeout",
        "1",
        "--memory",
        "2GiB",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 2
    assert "took longer than 1 s" in ended.stderr or "needs more memory than" in ended.stderr
    assert "--timeout" in ended.stderr or "--memory" in ended.stderr


def test_its_memory_is_bounded(trace: Path) -> None:
    query = "SELECT list(range::VARCHAR || 'a text that takes room') FROM range(100000000)"
    command = [sys.executable, "-m", "fdtrace", "sql", str(trace), query, "--memory", "200MB"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 2
    assert "needs more memory than" in ended.stderr
    assert "--memory" in ended.stderr


@pytest.mark.parametrize("query", [ENDLESS, STUCK])
def test_ctrl_c_ends_it(trace: Path, query: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, "sql", str(trace), query]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode in (2, 130)
    assert ended.stderr.startswith("fdtrace: interrupted")
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_limits_that_make_no_sense(trace: Path, capsys: Captured) -> None:
    assert main(["sql", str(trace), "SELECT 1", "--timeout", "-1"]) == 2
    assert main(["sql", str(trace), "SELECT 1", "--timeout", "nan"]) == 2
    assert main(["sql", str(trace), "SELECT 1", "--memory", "much"]) == 2
    assert "no size of memory" in capsys.readouterr().err
    assert main(["sql", str(trace), "SELECT 1", "--timeout", "0", "--memory", "64MiB"]) == 0


def test_json_lines_on_a_pipe_stay_json(trace: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fdtrace",
        "sql",
        str(trace),
        "SELECT chr(27) || 'x' AS a",
        "--format",
        "json",
    ]
    ended = subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert json.loads(ended.stdout) == {"a": "\x1bx"}

"""`fdtrace recover` of parts that somebody sent: nothing outside of them is read, written or removed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fdtrace.cli import main
from fdtrace.recorder import agent_processes
from fdtrace.recorder.collector.process import recover
from fdtrace.recorder.collector.saved_state import check_parts
from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.ring_directory import RingDirectory
from fdtrace.recorder.session import Session
from fdtrace.recorder.supervise import COLLECT
from fdtrace.recorder.supervise import ROOT as PACKAGE
from fdtrace.recorder.trace_paths import parts_directory
from tests.recorder.helpers import (
    armed_environment,
    has_steps,
    logged,
    num_logged,
    query,
    recorded,
    start_engine,
)


@pytest.fixture(autouse=True)
def own_mailboxes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path_factory.mktemp("mailboxes")
    directory.chmod(0o700)
    monkeypatch.setenv("FDTRACE_DIR", str(directory))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """What is to stay as it is, whatever parts say."""
    path = tmp_path / "documents"
    path.mkdir(mode=0o700)
    (path / "thesis.txt").write_text("thesis")
    return path


def parts_of(trace: Path, **said: Any) -> Path:
    """Parts with a `session.json` that says this."""
    parts = parts_directory(trace)
    parts.mkdir()
    known = {"id": "0123456789ab", "output": str(trace), "dir": "/nowhere", "created_at": 1, **said}
    (parts / "session.json").write_text(json.dumps(known))
    return parts


@dataclass
class Done:
    returncode: int
    stderr: str


def fdtrace_recover(trace: Path) -> Done:
    """The command, in this process."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(["recover", str(trace)])
    assert "Traceback" not in said.getvalue()
    assert "a fault in fdtrace" not in said.getvalue()
    return Done(code, said.getvalue())


def untouched(documents: Path) -> bool:
    return {p.name: p.read_text() for p in documents.iterdir()} == {"thesis.txt": "thesis"}


def test_a_directory_named_as_that_of_the_rings_is_left_alone(
    tmp_path: Path, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts_of(tmp_path / "bug.duckdb", dir=str(documents))
    monkeypatch.chdir(tmp_path)
    fdtrace_recover(Path("bug.duckdb"))
    assert untouched(documents)


@pytest.mark.parametrize(
    "output", ["documents/thesis.txt", "../thesis.txt", "{documents}/thesis.txt", "bug.duckdb"]
)
def test_the_trace_is_written_beside_the_parts_wherever_they_say(
    output: str, tmp_path: Path, documents: Path
) -> None:
    trace = tmp_path / "bug.duckdb"
    parts_of(trace, output=output.format(documents=documents))
    assert fdtrace_recover(trace).returncode == 0
    assert untouched(documents)
    assert query(trace, "SELECT state FROM trace") == [("recovered",)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bug.duckdb", "documents"]


@pytest.mark.parametrize(
    "said",
    [
        {"id": "../../../etc"}, {"id": ""}, {"id": 7}, {"dir": None}, {"dir": ["x"]}, {"created_at": "now"},
        {"notes": 1}, {"notes": [1]}, {"more": 1}, {"max_steps": "many"}, {"segments": True}, {"protocol": None},
    ],
)  # fmt: skip
def test_a_session_that_is_none_is_an_error(said: dict[str, Any], tmp_path: Path) -> None:
    parts = parts_of(tmp_path / "bug.duckdb", **said)
    done = fdtrace_recover(tmp_path / "bug.duckdb")
    assert done.returncode == 3
    assert "does not describe a recording" in done.stderr
    assert [path.name for path in parts.iterdir()] == ["session.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "[" * 100_000, "\xff", "{}" + " " * (1 << 20)],
    ids=["empty", "half", "list", "number", "deep", "no UTF-8", "long"],
)
def test_a_session_file_that_is_no_session_is_an_error(text: str, tmp_path: Path) -> None:
    parts = parts_of(tmp_path / "bug.duckdb")
    (parts / "session.json").write_text(text, encoding="latin-1")
    assert fdtrace_recover(tmp_path / "bug.duckdb").returncode == 3


def _link_to(documents: Path) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(documents / "thesis.txt")


@pytest.mark.parametrize(
    "name",
    ["next.duckdb", "views.duckdb", "final.duckdb", "final.duckdb.wal", "collector.lock", "collector.log",
     "session.tmp", "step-00000001.parquet", "thesis.parquet"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["link", "directory", "fifo"])
def test_parts_that_are_no_plain_files_are_refused(
    name: str, kind: str, tmp_path: Path, documents: Path
) -> None:
    parts = parts_of(tmp_path / "bug.duckdb")
    make: dict[str, Callable[[Path], Any]] = {
        "link": _link_to(documents), "directory": Path.mkdir, "fifo": os.mkfifo,
    }  # fmt: skip
    make[kind](parts / name)
    with pytest.raises(TraceError, match="holds a file that no recording makes"):
        check_parts(parts)
    assert untouched(documents)
    assert (parts / name).is_symlink() == (kind == "link")


@pytest.mark.parametrize("name", ["thesis.txt", "step-1.parquet", "../x", "step-00000001.parquet.bak"])
def test_files_that_no_recording_makes_are_refused_and_kept(name: str, tmp_path: Path) -> None:
    parts = parts_of(tmp_path / "bug.duckdb")
    (parts / name).write_text("thesis")
    if "/" in name:
        return
    done = fdtrace_recover(tmp_path / "bug.duckdb")
    assert done.returncode == 3
    assert name in done.stderr
    assert (parts / name).read_text() == "thesis"


def test_parts_that_are_a_link_are_refused(tmp_path: Path, documents: Path) -> None:
    parts_of(tmp_path / "real.duckdb")
    parts_directory(tmp_path / "bug.duckdb").symlink_to(parts_directory(tmp_path / "real.duckdb"))
    done = fdtrace_recover(tmp_path / "bug.duckdb")
    assert done.returncode == 3
    assert "no directory" in done.stderr
    assert (parts_directory(tmp_path / "real.duckdb") / "session.json").exists()


def test_a_session_file_that_is_a_link_is_refused(tmp_path: Path, documents: Path) -> None:
    parts = parts_of(tmp_path / "bug.duckdb")
    (parts / "session.json").rename(documents.parent / "session.json")
    (parts / "session.json").symlink_to(documents.parent / "session.json")
    assert fdtrace_recover(tmp_path / "bug.duckdb").returncode == 3


@pytest.mark.parametrize("published", ["table", "view"])
@pytest.mark.parametrize(
    "state",
    [
        {"parts": {"step": [["../documents/thesis.txt"]]}},
        {"parts": {"step": [["../../x/step-00000001.parquet"]]}},
        {"parts": {"thesis": [[]]}},
        {"parts": []},
        {"parts": {"step": [[7]]}},
        {"rings": {"tails": {"../../etc/passwd": {"position": {}, "engine": 3, "part": None}}}},
        {"rings": {"tails": {"1-1.ring": 7}}},
        {"rings": {"engines": [{"engine_id": "x"}]}},
        {"rings": []},
        {"notes": [["\x1b]0;OWNED\x07"]]},
        {"serial": "x"},
        [1],
    ],
)
def test_a_state_that_no_collector_saved_is_an_error(
    state: Any, published: str, tmp_path: Path, documents: Path
) -> None:
    trace = tmp_path / "bug.duckdb"
    parts_of(trace)
    with duckdb.connect(str(trace)) as db:
        text = json.dumps(state).replace("'", "''")
        if published == "table":
            db.execute(f"CREATE TABLE _collector AS SELECT '{text}' AS state")
        else:
            db.execute("CREATE TABLE own (x INT)")
            db.execute(f"CREATE VIEW _collector AS SELECT '{text}' AS state FROM own")
    done = fdtrace_recover(trace)
    assert done.returncode == 3
    assert "\x1b" not in done.stderr
    assert untouched(documents)


def test_a_database_that_reads_files_reads_none(tmp_path: Path, documents: Path) -> None:
    trace = tmp_path / "bug.duckdb"
    parts_of(trace)
    with duckdb.connect(str(trace)) as db:
        db.execute(
            f"CREATE VIEW _collector AS SELECT content AS state FROM read_text('{documents}/thesis.txt')"
        )
        db.execute(
            "CREATE MACRO duckdb_tables() AS TABLE SELECT '_collector' AS table_name, 'bug' AS database_name"
        )
    done = fdtrace_recover(trace)
    assert done.returncode == 3
    assert "thesis" not in done.stderr


def test_another_file_at_the_traces_path_is_not_replaced(tmp_path: Path) -> None:
    trace = tmp_path / "bug.duckdb"
    for make in (lambda: trace.write_text("thesis"), lambda: duckdb.connect(str(trace)).close(), trace.mkdir):
        parts = parts_of(trace)
        make()
        before = trace.stat()
        assert fdtrace_recover(trace).returncode == 3
        assert (trace.stat().st_ino, trace.stat().st_mtime) == (before.st_ino, before.st_mtime)
        shutil.rmtree(parts)
        shutil.rmtree(trace) if trace.is_dir() else trace.unlink()


@pytest.fixture
def started(tmp_path: Path) -> Any:
    """A recording in progress: its session, its engine, the log of that, and its collector."""
    session = Session.create(tmp_path / "live.duckdb")
    log = tmp_path / "live.log"
    engine = start_engine("--log", log, "--sleep", 0.002, env=armed_environment(session))
    command = [sys.executable, "-c", COLLECT, str(PACKAGE), "fdtrace.recorder.collector", str(session.path)]
    collector = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    shown = has_steps(Path(session.output))
    while not shown():
        time.sleep(0.02)
    yield session, engine, log, collector
    collector.kill()
    collector.communicate()
    session.remove_rings()


@pytest.fixture
def live(started: Any) -> Any:
    session, _, log, _ = started
    return session, log


@pytest.fixture
def cut_off(started: Any) -> Any:
    """All of its processes were killed."""
    session, engine, log, collector = started
    for process in (collector, engine):
        process.kill()
        process.wait()
    return session, log


def test_parts_that_name_another_live_recording_of_ours_leave_it_alone(live: Any, tmp_path: Path) -> None:
    """A copy of its own parts, which names its rings rightly; and parts that name them although they are not theirs."""
    session, log = live
    rings = os.listdir(session.dir)
    for name in ("copy", "forged"):
        trace = tmp_path / f"{name}.duckdb"
        if name == "copy":
            shutil.copytree(session.parts, parts_directory(trace))
        else:
            parts_of(trace, id=session.id, dir=session.dir)
        done = fdtrace_recover(trace)
        assert "rings of this recording are gone" in (
            done.stderr + str(query(trace, "SELECT notes FROM trace"))
        )
        assert os.listdir(session.dir) == rings
        assert [agent.recording for agent in agent_processes.agents()] == [session.id]
    count = num_logged(log)
    while num_logged(log) < count + 5:
        time.sleep(0.02)


def test_a_recording_that_is_in_progress_is_not_ended_by_recover(live: Any) -> None:
    session, _ = live
    done = fdtrace_recover(Path(session.output))
    assert done.returncode == 3
    assert "is being recorded to" in done.stderr
    assert [agent.recording for agent in agent_processes.agents()] == [session.id]


def test_parts_that_were_moved_are_recovered_with_their_rings(cut_off: Any, tmp_path: Path) -> None:
    session, log = cut_off
    moved = tmp_path / "moved.duckdb"
    session.parts.rename(parts_directory(moved))
    Path(session.output).rename(moved)
    assert fdtrace_recover(moved).returncode == 0
    found, whole = recorded(moved), logged(log)
    assert {step: found[step] for step in whole} == whole
    assert not Path(session.dir).exists()


def test_a_trace_that_was_deleted_is_recovered_from_its_parts(cut_off: Any) -> None:
    session, log = cut_off
    Path(session.output).unlink()
    recover(Session.load(session.path))
    found, whole = recorded(Path(session.output)), logged(log)
    assert {step: found[step] for step in whole} == whole
    assert RingDirectory.find(session.dir, session.id, session.parts) is None

"""Disks that are full and files that are cut short: the engine goes on, and the user learns what is safe."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fdtrace.recorder import agent_processes, attach_server
from fdtrace.recorder.agent import mailbox, ring, wire
from fdtrace.recorder.collector import failures
from fdtrace.recorder.collector.process import Collector, recover
from fdtrace.recorder.errors import TargetError, TraceError
from fdtrace.recorder.session import Session
from fdtrace.recorder.trace_paths import parts_directory
from tests.recorder.helpers import (
    ROOT,
    armed_environment,
    collected,
    cut_while_asleep,
    fdtrace_here,
    has_steps,
    logged,
    num_logged,
    pump,
    query,
    recorded,
    start_engine,
    stop_engine,
)

FDTRACE = [sys.executable, "-m", "fdtrace"]


@pytest.fixture(autouse=True)
def own_mailboxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "mailboxes"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv("FDTRACE_DIR", str(directory))
    return directory


@contextmanager
def small_disk(path: Path, size: str = "64k", inodes: int = 100) -> Iterator[Path]:
    """A file system of its own at `path`; skips the test where none can be mounted."""
    path.mkdir(exist_ok=True)
    options = f"size={size},mode=0700,nr_inodes={inodes}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("a small file system cannot be mounted here (not root, or no right to)")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(disk: Path, but: int = 0) -> Path:
    """Take all of a disk's room but so many bytes; remove the file to give it back."""
    path = disk / "fill"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        if but:
            file.truncate(max(0, file.tell() - but))
    return path


def wait_for(holds: Callable[[], Any], seconds: float = 900.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def goes_on(engine: subprocess.Popen[str], log: Path, steps: int = 5) -> bool:
    count = num_logged(log)
    wait_for(lambda: engine.poll() is not None or num_logged(log) > count + steps)
    return engine.poll() is None


@pytest.mark.parametrize("way", ["injected", "armed"])
def test_where_the_mailbox_finds_no_room_the_attach_is_refused_and_the_engine_goes_on(
    way: str, tmp_path: Path, own_mailboxes: Path
) -> None:
    log = tmp_path / "log"
    with small_disk(own_mailboxes):
        full = fill(own_mailboxes)
        env = armed_environment() if way == "armed" else dict(os.environ)
        engine = start_engine("--log", log, "--sleep", 0.002, env=env)
        assert goes_on(engine, log)
        done = fdtrace_here("attach", engine.pid, "-o", tmp_path / "t.duckdb", "--steps", 20)
        assert done.returncode == 3
        assert "No space left" in done.stderr
        assert os.listdir(own_mailboxes) == ["fill"]
        assert not parts_directory(tmp_path / "t.duckdb").exists()
        assert goes_on(engine, log)
        full.unlink()
        done = fdtrace_here("attach", engine.pid, "-o", tmp_path / "t.duckdb", "--steps", 20)
        assert done.returncode == 0, done.stderr
        assert stop_engine(engine)["hooked"] == (way == "armed")


def test_an_armed_recording_begins_once_its_mailbox_finds_room(tmp_path: Path, own_mailboxes: Path) -> None:
    """As `fdtrace record` arms it: nobody attaches, the agent itself tries again."""
    log, trace = tmp_path / "log", tmp_path / "t.duckdb"
    with small_disk(own_mailboxes), collected(trace) as (session, supervisor):
        full = fill(own_mailboxes)
        engine = start_engine("--log", log, "--sleep", 0.002, env=armed_environment(session))
        assert goes_on(engine, log)
        full.unlink()
        pump(supervisor, has_steps(trace))
        assert engine.poll() is None
        stop_engine(engine)


def test_where_the_ring_finds_no_room_it_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    log = tmp_path / "log"
    engine = start_engine("--log", log, "--sleep", 0.002)
    session = Session.create(tmp_path / "t.duckdb")
    with small_disk(Path(session.dir)):
        with pytest.raises(TargetError, match="could not begin") as caught:
            attach_server.attach(engine.pid, session)
        assert "No space left" in caught.value.why
        assert os.listdir(session.dir) == []
        assert goes_on(engine, log)
    session.discard()
    assert stop_engine(engine)["hooked"] is False


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_a_ring_that_is_cut_short_ends_the_recording_not_the_engine(length: int, tmp_path: Path) -> None:
    log, trace = tmp_path / "log", tmp_path / "t.duckdb"
    with collected(trace) as (session, supervisor):
        engine = start_engine("--log", log, "--sleep", 0.002, env=armed_environment(session))
        pump(supervisor, has_steps(trace))
        (path,) = Path(session.dir).glob("*.ring")
        cut_while_asleep(engine, path, length)
        assert goes_on(engine, log, steps=50)
        agent = agent_processes.find_agent(engine.pid)
        assert agent is not None
        assert agent.recording is None
        assert "cut short" in agent.status["problem"]
        pump(supervisor, lambda: supervisor.ended is not None)
        supervisor.end("exit")
        pump(supervisor, lambda: supervisor.finished is not None)
        stop_engine(engine)
    found, whole = recorded(trace), logged(log)
    assert found
    assert {step: whole[step] for step in found} == found
    (notes,) = query(trace, "SELECT notes FROM trace")[0]
    assert any("cut short" in note for note in json.loads(notes))


@pytest.mark.parametrize("spoil", ["cut", "removed", "scribbled"])
def test_a_mailbox_that_is_spoiled_is_made_anew(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    engine = start_engine("--log", log, "--sleep", 0.002, env=armed_environment())
    path = Path(mailbox.directory()) / mailbox.file_name(engine.pid)
    wait_for(lambda: agent_processes.find_agent(engine.pid) is not None)
    if spoil == "cut":
        os.truncate(path, 0)
    elif spoil == "removed":
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.seek(mailbox.COMMAND)
            file.write(b"\xff" * 4000)
    assert goes_on(engine, log)
    trace = tmp_path / "t.duckdb"
    wait_for(lambda: fdtrace_here("attach", engine.pid, "-o", trace, "--steps", 20).returncode == 0)
    assert stop_engine(engine)["hooked"] is True


def test_a_program_that_closes_every_descriptor_is_not_written_to(tmp_path: Path) -> None:
    """A daemon does; the number of ours is then a file of its own."""
    box = mailbox.Mailbox.create(str(tmp_path / "boxes"), os.getpid(), 1, wire.PROTOCOL)
    own = tmp_path / "own"
    own.write_bytes(b"precious" * 2000)
    fd = os.open(own, os.O_RDWR)
    os.dup2(fd, box.fd)
    assert not box.is_there
    with pytest.raises(OSError, match="removed"):
        box.write_status({"pid": 1})
    box.close()
    os.fstat(box.fd)  # it is not ours to close
    assert own.read_bytes() == b"precious" * 2000
    os.close(fd)
    os.close(box.fd)


def test_a_limit_on_the_size_of_files_is_an_error_not_a_crash(tmp_path: Path) -> None:
    code = "from fdtrace.recorder.agent import ring, wire; ring.create('r', wire.PROTOCOL, 0, 2, 1 << 18)"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(ROOT)), preexec_fn=limit,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert list(tmp_path.glob("r")) == []


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], subprocess.Popen[str]]]]:
    """Start an engine and `fdtrace attach` to it, recording to a path; both as they are once a step is published."""

    def start(trace: Path, *options: str) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
        engine = start_engine("--log", tmp_path / "log", "--sleep", 0.002)
        attached = subprocess.Popen(
            [*FDTRACE, "attach", str(engine.pid), "-o", str(trace), *options],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(attached)
        wait_for(has_steps(trace))
        return engine, attached

    started: list[subprocess.Popen[str]] = []
    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_disk_that_is_full_for_a_moment_is_waited_for(recording: Any, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "48m") as disk:
        trace = disk / "t.duckdb"
        _, attached = recording(trace)
        full = fill(disk)
        assert "is full: waiting" in _said(attached)
        full.unlink()
        attached.send_signal(signal.SIGINT)
        _, rest = attached.communicate(timeout=900)
        assert attached.returncode == 0, rest
        found, whole = recorded(trace), logged(tmp_path / "log")
        assert list(found) == list(range(min(found), max(found) + 1))
        assert {step: whole[step] for step in found} == found
        assert query(trace, "SELECT * FROM event WHERE kind = 'lost'") == []


def _said(process: subprocess.Popen[str], word: str = "waiting") -> str:
    assert process.stderr is not None
    text = ""
    for line in process.stderr:
        text += line
        if word in line:
            break
    return text


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_recording_detaches_and_says_how_to_go_on(
    recording: Any, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "48m") as disk:
        trace, log = disk / "t.duckdb", tmp_path / "log"
        engine, attached = recording(trace, "--ring-mib", "2")
        full = fill(disk)
        _, said = attached.communicate(timeout=900)
        assert attached.returncode == 3
        assert "Traceback" not in said
        assert "is full" in said
        assert "steps are safe in" in said
        assert f"fdtrace recover {trace}" in said
        assert goes_on(engine, log)
        assert agent_processes.find_agent(engine.pid) is None
        assert stop_engine(engine)["hooked"] is False
        full.unlink()
        done = fdtrace_here("recover", trace)
        assert done.returncode == 0, done.stderr
        found, whole = recorded(trace), logged(log)
        # The ring may wrap before the recording ends: what is missing then is named, step for step.
        rows = query(trace, "SELECT detail FROM event WHERE kind = 'lost'")
        lost = [json.loads(detail) for (detail,) in rows]
        named = {step for loss in lost for step in range(loss["first_step"], loss["last_step"] + 1)}
        assert set(range(min(found), max(found) + 1)) - set(found) == named & set(range(max(found)))
        assert {step: whole[step] for step in found} == found
        assert not parts_directory(trace).exists()


def test_where_the_parts_are_removed_the_recording_ends_and_the_engine_is_let_go(
    recording: Any, tmp_path: Path
) -> None:
    trace = tmp_path / "t.duckdb"
    engine, attached = recording(trace)
    parts_directory(trace).rename(tmp_path / "elsewhere")
    _, said = attached.communicate(timeout=900)
    assert attached.returncode == 3
    assert "Traceback" not in said
    assert "its parts were removed" in said
    assert goes_on(engine, tmp_path / "log")
    assert stop_engine(engine)["hooked"] is False


def test_another_file_in_the_traces_place_is_never_replaced(recording: Any, tmp_path: Path) -> None:
    trace = tmp_path / "t.duckdb"
    engine, attached = recording(trace)
    (tmp_path / "thesis").write_text("thesis")
    (tmp_path / "thesis").rename(trace)
    _, said = attached.communicate(timeout=900)
    assert attached.returncode == 3
    assert "Traceback" not in said
    assert "was replaced by another file" in said
    assert trace.read_text() == "thesis"
    assert fdtrace_here("recover", trace).returncode == 3
    assert trace.read_text() == "thesis"
    assert stop_engine(engine)["hooked"] is False
    trace.rename(tmp_path / "thesis")
    assert fdtrace_here("recover", trace).returncode == 0
    found, whole = recorded(trace), logged(tmp_path / "log")
    assert {step: whole[step] for step in found} == found


def test_a_trace_that_was_deleted_while_it_records_is_published_again(recording: Any, tmp_path: Path) -> None:
    trace = tmp_path / "t.duckdb"
    _, attached = recording(trace)
    trace.unlink()
    wait_for(trace.exists)
    attached.send_signal(signal.SIGINT)
    assert attached.wait(timeout=900) == 0
    found, whole = recorded(trace), logged(tmp_path / "log")
    assert {step: whole[step] for step in found} == found


def test_record_lets_its_command_run_on_when_the_recording_fails(tmp_path: Path) -> None:
    trace, log = tmp_path / "t.duckdb", tmp_path / "log"
    engine = [
        sys.executable,
        str(ROOT / "tests/recorder/played/engine.py"),
        "--log",
        str(log),
        "--sleep",
        "0.002",
    ]
    started = subprocess.Popen(
        [*FDTRACE, "record", "-o", str(trace), "--", *engine, "--steps", "3000"],
        cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(has_steps(trace))
    parts_directory(trace).rename(tmp_path / "elsewhere")
    _, said = started.communicate(timeout=900)
    assert started.returncode == 3
    assert "its parts were removed" in said
    assert "Traceback" not in said
    assert num_logged(log) == 3000


def test_what_is_decoded_outlives_a_publication_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is written once, whatever failed on the way: the parts, the views, the final file."""
    trace, log = tmp_path / "t.duckdb", tmp_path / "log"
    session = Session.create(trace)
    start_engine("--log", log, "--steps", 80, env=armed_environment(session)).communicate(timeout=900)
    collector = Collector(session)
    collector.discover()
    collector.read()
    for name in ("add", "publish"):
        real, failed = getattr(collector.store, name), [False]

        def fail(*given: Any, real: Any = real, failed: list[bool] = failed) -> None:
            if not failed[0]:
                failed[0] = True
                raise duckdb.IOException(f"Could not write: {os.strerror(28)}")
            real(*given)

        monkeypatch.setattr(collector.store, name, fail)
        with pytest.raises(duckdb.IOException) as caught:
            collector.publish()
        assert failures.is_full(caught.value)
        collector.store.reset()
    collector.finish("exit 0")
    assert recorded(trace) == logged(log)


def test_a_recovery_that_fails_lets_a_later_one_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, log = tmp_path / "t.duckdb", tmp_path / "log"
    session = Session.create(trace)
    start_engine("--log", log, "--steps", 80, env=armed_environment(session)).communicate(timeout=900)

    def fail(*given: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Collector, "write_final", fail)
        with pytest.raises(TraceError, match="cannot go on"):
            recover(session)
    assert recover(session) == 80
    assert recorded(trace) == logged(log)


def test_a_writer_looks_at_its_files_length_before_it_stores(tmp_path: Path) -> None:
    page = ring.create(str(tmp_path / "1-1.ring"), wire.PROTOCOL, 0, 2, 1 << 18)
    writer = ring.RingWriter(page, 2, 1 << 18)
    os.truncate(tmp_path / "1-1.ring", 100)
    writer.next_check = 0.0
    with pytest.raises(OSError, match="cut short"):
        writer.write(bytes(64))
    with pytest.raises(OSError, match="cut short"):
        writer.next_segment()
    writer.close()

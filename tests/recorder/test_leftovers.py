"""What an fdtrace left that was killed goes with the next one; what can still be recovered, or is another's, stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fdtrace.recorder import attach_server, leftovers
from fdtrace.recorder.agent.ring import process_start
from fdtrace.recorder.creator_process import CreatorProcess
from fdtrace.recorder.inject import callback_socket
from fdtrace.recorder.ring_directory import Owner, RingDirectory
from fdtrace.recorder.session import Session
from tests.recorder.helpers import ROOT, start_engine

CREATE = """
import os, sys
from pathlib import Path
from fdtrace.recorder.session import Session
session = Session.create(Path(sys.argv[1]))
print(session.dir, flush=True)
sys.stdin.read()
"""


@dataclass
class LeftRings:
    """The directory of rings of a recording. Its fdtrace lives until `end`: another test's may sweep at any time."""

    path: Path
    process: subprocess.Popen[str]

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture(autouse=True)
def own_mailboxes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path_factory.mktemp("mailboxes")
    directory.chmod(0o700)
    monkeypatch.setenv("FDTRACE_DIR", str(directory))


@pytest.fixture
def left(tmp_path: Path) -> Iterator[LeftRings]:
    """Of a recording to `tmp_path / "t.duckdb"`."""
    command = [sys.executable, "-c", CREATE, str(tmp_path / "t.duckdb")]
    process = subprocess.Popen(command, cwd=ROOT, stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    yield LeftRings(path, process)
    process.kill()
    process.communicate()
    shutil.rmtree(path, ignore_errors=True)


def ring_of(path: Path, pid: int, start: int) -> None:
    """A ring in which a process says that it writes."""
    from fdtrace.recorder.agent import ring, wire  # noqa: PLC0415

    head = ring.HEADER.pack(ring.MAGIC, wire.PROTOCOL, 2, 1 << 18, pid, start, 1)
    file = path / f"{pid}-1.ring"
    file.write_bytes(head.ljust(ring.PAGE, b"\0"))
    file.chmod(0o400)


def test_rings_that_hold_nothing_go_with_the_next_fdtrace(left: LeftRings, tmp_path: Path) -> None:
    left.end()
    Session.create(tmp_path / "next.duckdb").discard()
    assert not left.path.exists()


def test_rings_whose_parts_are_there_stay_for_recover(left: LeftRings, tmp_path: Path) -> None:
    ring_of(left.path, 2**22 + 1, 7)
    left.end()
    leftovers.sweep()
    assert left.path.exists()
    shutil.rmtree(tmp_path / "t.duckdb.parts")
    leftovers.sweep()
    assert not left.path.exists()


def test_parts_that_were_made_again_at_the_same_path_are_others(left: LeftRings, tmp_path: Path) -> None:
    ring_of(left.path, 2**22 + 1, 7)
    left.end()
    (tmp_path / "t.duckdb.parts").rename(tmp_path / "kept")
    (tmp_path / "t.duckdb.parts").mkdir()
    leftovers.sweep()
    assert not left.path.exists()


def test_rings_that_are_written_to_stay(left: LeftRings, tmp_path: Path) -> None:
    """Their parts are gone, and their process lives: removed, they could not be found to detach from."""
    ring_of(left.path, os.getpid(), process_start(os.getpid()))
    left.end()
    shutil.rmtree(tmp_path / "t.duckdb.parts")
    leftovers.sweep()
    assert left.path.exists()
    ring_of(left.path, 1, process_start(1) + 1)  # a pid that was given to another process since
    (left.path / f"{os.getpid()}-1.ring").unlink()
    leftovers.sweep()
    assert not left.path.exists()


def test_rings_of_an_fdtrace_that_lives_stay(tmp_path: Path) -> None:
    session = Session.create(tmp_path / "t.duckdb")
    leftovers.sweep()
    assert Path(session.dir).exists()
    session.discard()


def test_rings_that_were_not_finished_go(tmp_path: Path) -> None:
    """Killed between making the directory and saying whose it is."""
    session = Session.create(tmp_path / "t.duckdb")
    gone = CreatorProcess(CreatorProcess.this().namespace, os.getpid(), process_start(os.getpid()) + 1)
    for maker, goes in ((gone, True), (CreatorProcess.this(), False)):
        path = Path(session.dir).with_name(f"new-{maker}-0123456789ab")
        path.mkdir(mode=0o700)
        leftovers.sweep()
        assert path.exists() != goes
        shutil.rmtree(path, ignore_errors=True)
    session.discard()


def test_directories_that_merely_look_like_ours_stay(tmp_path: Path) -> None:
    session = Session.create(tmp_path / "t.duckdb")
    above = Path(session.dir).parent
    for name in ("thesis", "new-thesis", "0123456789ab"):
        (above / name).mkdir(mode=0o700)
        (above / name / "thesis.txt").write_text("thesis")
    leftovers.sweep()
    for name in ("thesis", "new-thesis", "0123456789ab"):
        assert (above / name / "thesis.txt").read_text() == "thesis"
        shutil.rmtree(above / name)
    session.discard()


def test_sockets_directories_go_once_their_maker_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback_socket, "DIRECTORIES", (str(tmp_path),))
    here = CreatorProcess.this()
    makers = {
        "gone": CreatorProcess(here.namespace, here.pid, here.start + 1),
        "here": here,
        "elsewhere": CreatorProcess(here.namespace + 1, here.pid, here.start + 1),
    }
    paths = {}
    for name, maker in makers.items():
        paths[name] = tmp_path / f"{callback_socket.PREFIX}{maker}-x_1"
        paths[name].mkdir(mode=0o700)
        (paths[name] / "s").touch()
    (tmp_path / f"{callback_socket.PREFIX}thesis").mkdir()
    (tmp_path / f"{callback_socket.PREFIX}{makers['gone']}-link").symlink_to(
        tmp_path / f"{callback_socket.PREFIX}thesis"
    )
    leftovers.sweep()
    assert not paths["gone"].exists()
    assert paths["here"].exists()
    assert paths["elsewhere"].exists()
    assert (tmp_path / f"{callback_socket.PREFIX}thesis").exists()


@pytest.mark.parametrize("text", ["", "1", "1-2", "1-2-3-4", "a-b-c", "1-2-٣", "-1-2-3", "1-2-" + "9" * 40])
def test_only_what_a_maker_writes_is_one(text: str) -> None:
    assert CreatorProcess.parse(text) is None
    assert Owner.parse(text.encode()) is None
    assert CreatorProcess.parse(str(CreatorProcess.this())) == CreatorProcess.this()


def test_an_attach_that_is_killed_leaves_what_the_next_removes(tmp_path: Path) -> None:
    """SIGKILL in the middle of it, before there is a collector."""
    engine = start_engine("--log", tmp_path / "log", "--sleep", 0.002)
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom fdtrace.recorder import attach_server\n"
        "from fdtrace.recorder.inject import injector\nfrom fdtrace.recorder.session import Session\n"
        "session = Session.create(Path(sys.argv[2]))\nprint(session.dir, flush=True)\n"
        "injector._by_ptrace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "attach_server.attach(int(sys.argv[1]), session)\n"
    )
    command = [sys.executable, "-c", code, str(engine.pid), str(tmp_path / "t.duckdb")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    rings = Path(done.stdout.strip())
    assert rings.exists()
    sockets = [name for name in os.listdir("/tmp") if name.startswith(callback_socket.PREFIX)]
    assert sockets
    session = Session.create(tmp_path / "next.duckdb")
    assert not rings.exists()
    maker_gone = [name for name in sockets if Path("/tmp", name).exists() and _is_gone(name)]
    assert maker_gone == []
    (reached,) = attach_server.attach(engine.pid, session)
    assert reached.status["recording"] == session.id
    attach_server.detach(session.id)
    session.discard()


def _is_gone(name: str) -> bool:
    maker = CreatorProcess.parse(name.removeprefix(callback_socket.PREFIX).rpartition("-")[0])
    return maker is not None and maker.is_gone


def test_a_collector_at_work_keeps_its_rings_when_who_started_it_was_killed(tmp_path: Path) -> None:
    engine = start_engine("--log", tmp_path / "log", "--sleep", 0.002)
    trace = tmp_path / "t.duckdb"
    attached = subprocess.Popen(
        [sys.executable, "-m", "fdtrace", "attach", str(engine.pid), "-o", str(trace)], cwd=ROOT
    )
    while not trace.exists():
        time.sleep(0.02)
    attached.kill()
    attached.wait()
    session = Session.load(tmp_path / "t.duckdb.parts" / "session.json")
    leftovers.sweep()
    assert RingDirectory.find(session.dir, session.id, session.parts) is not None
    engine.kill()
    engine.wait()
    while (tmp_path / "t.duckdb.parts").exists():
        time.sleep(0.02)
    assert not Path(session.dir).exists()

"""Nobody can answer for somebody else's process, or have root make a file of root's theirs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fdtrace.recorder import agent_processes, attach_server
from fdtrace.recorder.agent import mailbox, ring, wire
from fdtrace.recorder.errors import TargetError
from fdtrace.recorder.inject import run_in_process
from fdtrace.recorder.inject.proc import read_stat
from fdtrace.recorder.inject.users import User, acting_as
from fdtrace.recorder.session import Session
from tests.recorder.helpers import ROOT, armed_environment, cut_while_asleep, has_steps, query
from tests.users import ALICE, BOB, needs_root, run_as, start_engine_of, their_python

pytestmark = needs_root

MAILBOXES = Path(f"/tmp/fdtrace-{ALICE}")
RINGS = Path(f"/dev/shm/fdtrace-rings-{ALICE}")

ATTEMPT = """
try:
    session = Session.create(Path(f"/tmp/fdtrace-test-{os.getuid()}.duckdb"), target=int(sys.argv[2]))
    attach_server.attach(int(sys.argv[2]), session)
    said = "attached"
except FdtraceError as error:
    said = f"{error.what}: {error.why}"
print(json.dumps(said))
"""


@pytest.fixture(autouse=True)
def nothing_of_theirs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Their directories are made by the test alone."""
    monkeypatch.delenv("FDTRACE_DIR", raising=False)
    _remove()
    yield
    _remove()


def _remove() -> None:
    for path in (MAILBOXES, RINGS):
        if path.is_symlink():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)


def test_an_attempt_on_another_users_engine_leaves_nothing_that_stands_in_the_way(tmp_path: Path) -> None:
    engine = start_engine_of(ALICE)
    said = run_as(BOB, ATTEMPT, engine.pid)
    assert said.startswith(f"this user may not make files for user {ALICE}")
    assert not RINGS.exists()
    assert not Path(f"/tmp/fdtrace-test-{BOB}.duckdb.parts").exists()
    session = Session.create(tmp_path / "t.duckdb", target=engine.pid)
    (reached,) = attach_server.attach(engine.pid, session)
    assert reached.status["recording"] == session.id
    assert RINGS.stat().st_uid == ALICE
    assert attach_server.detach(session.id) == []
    session.discard()
    assert list(RINGS.iterdir()) == []


def forged_mailbox(pid: int, owner: int) -> Path:
    """What another user would leave to answer for a process: an agent that says it is armed, and obeys."""
    with acting_as(User(owner, owner)):
        MAILBOXES.mkdir(mode=0o700)
        head = mailbox.HEADER.pack(mailbox.MAGIC, wire.PROTOCOL, pid, ring.process_start(pid))
        path = MAILBOXES / mailbox.file_name(pid)
        path.write_bytes(head.ljust(mailbox.SIZE, b"\0"))
        path.chmod(0o600)
    return path


def test_another_users_mailbox_is_not_believed_and_its_maker_is_named() -> None:
    engine = start_engine_of(ALICE)
    forged_mailbox(engine.pid, BOB)
    with pytest.raises(TargetError) as caught:
        agent_processes.find_agent(engine.pid)
    assert f"belongs to user {BOB}" in caught.value.why
    problems: list[TargetError] = []
    assert engine.pid not in [agent.pid for agent in agent_processes.agents(problems)]
    assert any(str(BOB) in problem.why for problem in problems)


@pytest.mark.parametrize("spoil", ["linked", "open", "fifo", "twice", "directory open", "directory linked"])
def test_a_mailbox_that_others_could_have_changed_is_not_believed(spoil: str, tmp_path: Path) -> None:
    engine = start_engine_of(ALICE)
    path = forged_mailbox(engine.pid, ALICE)
    if spoil == "linked":
        path.rename(tmp_path / "box")
        path.symlink_to(tmp_path / "box")
    elif spoil == "open":
        path.chmod(0o666)
    elif spoil == "fifo":
        path.unlink()
        os.mkfifo(path, 0o600)
        os.chown(path, ALICE, ALICE)
    elif spoil == "twice":
        os.link(path, path.with_name("another"))
    elif spoil == "directory open":
        MAILBOXES.chmod(0o777)
    else:
        MAILBOXES.rename(tmp_path / "boxes")
        MAILBOXES.symlink_to(tmp_path / "boxes")
    with pytest.raises(TargetError, match="cannot talk to the agents"):
        agent_processes.find_agent(engine.pid)


def test_a_lock_that_is_held_for_ever_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start_engine_of(ALICE)
    path = forged_mailbox(engine.pid, ALICE)
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl; f = open({str(path)!r}); fcntl.flock(f, 2); print(flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    monkeypatch.setattr(agent_processes, "LOCK_WAIT", 0.2)
    agent = agent_processes.find_agent(engine.pid)
    assert agent is not None
    with pytest.raises(TargetError, match="another program is talking to"):
        agent_processes.command(agent, {"op": "stop"})
    holder.communicate(b"\n")


def test_an_armed_engine_whose_directory_is_a_strangers_says_so_and_begins_when_it_is_gone(
    tmp_path: Path,
) -> None:
    with acting_as(User(BOB, BOB)):
        MAILBOXES.mkdir(mode=0o700)
    engine = start_engine_of(ALICE, env=armed_environment())
    session = Session.create(tmp_path / "t.duckdb", target=engine.pid)
    with pytest.raises(TargetError) as caught:
        attach_server.attach(engine.pid, session)
    assert f"belongs to user {BOB}" in caught.value.why
    MAILBOXES.rmdir()
    (reached,) = attach_server.attach(engine.pid, session)
    assert reached.status["recording"] == session.id
    assert attach_server.detach(session.id) == []
    session.discard()
    assert engine.poll() is None


def test_a_strangers_ring_directory_is_named(tmp_path: Path) -> None:
    with acting_as(User(BOB, BOB)):
        RINGS.mkdir(mode=0o700)
    engine = start_engine_of(ALICE)
    with pytest.raises(TargetError) as caught:
        Session.create(tmp_path / "t.duckdb", target=engine.pid)
    assert f"belongs to user {BOB}" in caught.value.why
    assert list(tmp_path.iterdir()) == []


def test_rings_are_removed_by_descriptor_though_their_directory_was_swapped(tmp_path: Path) -> None:
    """The user whose directory it is puts a link to somebody's files in its place."""
    engine = start_engine_of(ALICE)
    session = Session.create(tmp_path / "t.duckdb", target=engine.pid)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis").write_text("thesis")
    rings = session.rings()
    assert rings is not None
    Path(session.dir).rename(RINGS / "elsewhere")
    Path(session.dir).symlink_to(tmp_path / "precious")
    rings.remove()
    session.remove_rings()
    assert (tmp_path / "precious" / "thesis").read_text() == "thesis"


RACE = """
import os, sys, time
target, deadline = sys.argv[1], time.monotonic() + 20
won = 0
while time.monotonic() < deadline and not os.path.exists(sys.argv[2]):
    for parent in ("/tmp", "/var/tmp"):
        for name in os.listdir(parent):
            if not name.startswith("fdtrace-attach-"):
                continue
            path = f"{parent}/{name}/s"
            try:
                os.unlink(path)
                os.symlink(target, path)
                won += 1
            except OSError:
                pass
"""


def test_no_file_of_roots_becomes_another_users_whatever_they_put_in_the_sockets_place(
    tmp_path: Path,
) -> None:
    secret, over = (
        Path("/tmp") / f"fdtrace-test-secret-{os.getpid()}",
        Path("/tmp") / f"fdtrace-over-{os.getpid()}",
    )
    secret.write_text("root's")
    secret.chmod(0o600)
    engine = start_engine_of(ALICE)
    racer = subprocess.Popen([their_python(), "-c", RACE, str(secret), str(over)], user=ALICE, cwd="/")
    try:
        for _ in range(30):
            with contextlib.suppress(TargetError):  # it was kept from calling back: its own user's doing
                run_in_process(engine.pid, "result = 1", timeout=0.2)
            found = secret.stat()
            assert (found.st_uid, found.st_mode & 0o777) == (0, 0o600)
    finally:
        over.touch()
        racer.wait()
        over.unlink()
        secret.unlink()
    assert engine.poll() is None


def test_the_rights_of_another_user_are_this_threads_alone_and_given_back(tmp_path: Path) -> None:
    begin, seen = threading.Event(), []

    def write() -> None:
        begin.wait()
        seen.append((tmp_path / "mine").write_text("root"))

    thread = threading.Thread(target=write)
    thread.start()
    with acting_as(User(ALICE, ALICE)):
        begin.set()
        thread.join()
        with pytest.raises(PermissionError):
            (tmp_path / "theirs").write_text("alice")
    assert (tmp_path / "mine").stat().st_uid == 0
    assert seen == [4]
    (tmp_path / "again").write_text("root")
    assert (tmp_path / "again").stat().st_uid == 0


def test_root_records_a_lying_ring_of_another_user_and_says_so(tmp_path: Path) -> None:
    """What a user puts into the ring's place ends that ring alone, with a note; the collector of root goes on."""
    engine = start_engine_of(ALICE)
    trace = tmp_path / "t.duckdb"
    attached = subprocess.Popen(
        [sys.executable, "-m", "fdtrace", "attach", str(engine.pid), "-o", str(trace)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    shown = has_steps(trace)
    while not shown():
        time.sleep(0.02)
    (directory,) = RINGS.iterdir()
    ring_file = next(directory.glob("*.ring"))
    with acting_as(User(ALICE, ALICE)):
        ring_file.chmod(0o600)
        cut_while_asleep(engine, ring_file, 5000)
    _, said = attached.communicate(timeout=900)
    assert attached.returncode == 0, said
    assert "Traceback" not in said
    notes = json.loads(query(trace, "SELECT notes FROM trace")[0][0])
    assert any("cut short" in note for note in notes), notes
    assert query(trace, "SELECT count(*) FROM step")[0][0] > 0
    assert engine.poll() is None
    assert read_stat(f"/proc/{engine.pid}/stat").state not in "ZX"

"""`fdtrace attach` and `detach` on a running engine: injected and armed, under load and idle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fdtrace.recorder import agent_delivery, attach_server
from fdtrace.recorder.agent import load, mailbox
from fdtrace.recorder.errors import TargetError
from fdtrace.recorder.inject import run_in_process
from fdtrace.recorder.session import Session
from fdtrace.recorder.trace_paths import parts_directory
from tests.recorder.helpers import (
    ENGINE,
    ROOT,
    Rows,
    armed_environment,
    fdtrace_here,
    has_steps,
    logged,
    num_logged,
    query,
    recorded,
    start_engine,
    stop_engine,
)

FDTRACE = [sys.executable, "-m", "fdtrace"]


@pytest.fixture(autouse=True)
def own_mailboxes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Mailboxes of this test alone, for our side and for armed engines."""
    directory = tmp_path_factory.mktemp("mailboxes")
    directory.chmod(0o700)
    monkeypatch.setenv("FDTRACE_DIR", str(directory))
    return directory


@pytest.fixture(params=["injected", "armed"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    environment = armed_environment() if request.param == "armed" else dict(os.environ)
    process = start_engine(
        "--log", tmp_path / "log", "--sleep", 0.002, "--idle", tmp_path / "idle", env=environment
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


def fdtrace(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [*FDTRACE, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=900, check=False)


def agrees(trace: Path, log: Path) -> Rows:
    """The recording, which must equal the engine's own log over the steps that it holds, without a gap."""
    found, whole = recorded(trace), logged(log)
    assert list(found) == list(range(min(found), max(found) + 1))
    assert {step: whole[step] for step in found} == found
    return found


def test_attach_records_steps_exactly_detaches_and_attaches_again(
    engine: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    log, way = tmp_path / "log", request.node.callspec.params["engine"]
    for name in ("one", "two"):
        trace = tmp_path / f"{name}.duckdb"
        done = fdtrace("attach", engine.pid, "-o", trace, "--steps", 150)
        assert done.returncode == 0, done.stderr
        assert len(agrees(trace, log)) == 150
        assert query(trace, "SELECT ended_by FROM trace") == [("steps",)]
        first = "SELECT step = (SELECT min(step) FROM step), reason FROM event WHERE kind = 'attached'"
        assert query(trace, first) == [(True, way)]
    said = stop_engine(engine)
    assert said["threads"] == 1
    assert said["hooked"] == (way == "armed")


def test_an_injected_process_is_as_it_was_after_detaching(tmp_path: Path) -> None:
    engine = start_engine("--log", tmp_path / "log", "--sleep", 0.002)
    before = len(os.listdir(f"/proc/{engine.pid}/fd"))
    for i in range(2):
        assert (
            fdtrace_here("attach", engine.pid, "-o", tmp_path / f"{i}.duckdb", "--steps", 20).returncode == 0
        )
    assert len(os.listdir(f"/proc/{engine.pid}/fd")) == before
    said = stop_engine(engine)
    assert (said["hooked"], said["threads"]) == (False, 1)
    sent = [load.NAME, *(f"{load.NAME}.{name}" for name in load.order(["sandbox"]))]
    assert said["modules"] == sorted(sent), "it was sent more than its engine's adapter, or that was not kept"
    assert os.listdir(mailbox.directory()) == []


@pytest.fixture
def idle_engine(tmp_path: Path, impatient: None) -> subprocess.Popen[str]:
    """One that has made no call yet, and makes none until `tmp_path / "idle"` is removed."""
    (tmp_path / "idle").touch()
    return start_engine("--log", tmp_path / "log", "--sleep", 0.002, "--idle", tmp_path / "idle")


def attached_once(pid: int, trace: Path) -> None:
    session = Session.create(trace)
    (reached,) = attach_server.attach(pid, session)
    assert reached.status["recording"] == session.id
    assert attach_server.detach(session.id) == []
    session.remove_rings()


def test_recording_again_leaves_no_objects_behind_where_nothing_is_collected(
    idle_engine: subprocess.Popen[str], tmp_path: Path
) -> None:
    pid = idle_engine.pid
    run_in_process(pid, "import gc\ngc.collect()\ngc.disable()")
    counts = []
    for i in range(6):
        attached_once(pid, tmp_path / f"{i}.duckdb")
        counts.append(run_in_process(pid, "import gc\nresult = len(gc.get_objects())").value)
    assert counts[-1] - counts[1] < 10, counts


def test_an_agent_of_another_version_that_was_left_is_replaced(
    idle_engine: subprocess.Popen[str], tmp_path: Path
) -> None:
    attached_once(idle_engine.pid, tmp_path / "one.duckdb")
    package = f"import sys\npackage = sys.modules[{load.NAME!r}]\n"
    run_in_process(idle_engine.pid, f"{package}package.identity, package.old = 'another', True")
    attached_once(idle_engine.pid, tmp_path / "two.duckdb")
    left = run_in_process(
        idle_engine.pid, f"{package}result = [package.identity, hasattr(package, 'old')]"
    ).value
    assert left == [agent_delivery.identity(("sandbox",)), False]


def test_an_agent_that_has_left_takes_no_more_orders(
    idle_engine: subprocess.Popen[str], tmp_path: Path
) -> None:
    """An engine may run the command itself while we enter it, because we take it for idle. That must not arm it."""
    attached_once(idle_engine.pid, tmp_path / "one.duckdb")
    attend = f"import sys\nresult = sys.modules[{load.NAME!r}].arm"
    assert run_in_process(idle_engine.pid, f"{attend}.attend()").value == {}
    assert run_in_process(idle_engine.pid, f"{attend}.current.attend()").value is None
    assert os.listdir(mailbox.directory()) == []


def test_an_armed_engine_that_has_made_no_call_yet_begins_with_its_first(tmp_path: Path) -> None:
    (tmp_path / "idle").touch()
    environment = armed_environment()
    engine = start_engine(
        "--log", tmp_path / "log", "--idle", tmp_path / "idle", "--sleep", 0.002, env=environment
    )
    session = Session.create(tmp_path / "t.duckdb")
    (reached,) = attach_server.attach(engine.pid, session)
    assert reached.status["recording"] == session.id
    (tmp_path / "idle").unlink()
    wait_for(lambda: (tmp_path / "log").exists() and len(logged(tmp_path / "log")) > 5)
    assert attach_server.detach(session.id) == []
    assert stop_engine(engine)["hooked"] is True
    session.remove_rings()


def test_detach_from_elsewhere_ends_the_recording(engine: Any, tmp_path: Path) -> None:
    trace = tmp_path / "t.duckdb"
    attached = subprocess.Popen(
        [*FDTRACE, "attach", str(engine.pid), "-o", str(trace)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    wait_for(has_steps(trace))
    assert str(trace) in fdtrace_here("status").stdout
    again = fdtrace_here("attach", engine.pid, "-o", tmp_path / "again.duckdb")
    assert again.returncode == 3
    assert "already recorded" in again.stderr
    assert str(trace) in again.stderr
    assert not (tmp_path / "again.duckdb").exists()
    assert fdtrace_here("detach", engine.pid).returncode == 0
    assert attached.wait(timeout=900) == 0
    agrees(trace, tmp_path / "log")
    assert query(trace, "SELECT ended_by FROM trace") == [("detach",)]
    assert fdtrace_here("detach", engine.pid).returncode == 3


def test_ctrl_c_ends_the_recording_and_leaves_the_engine(engine: Any, tmp_path: Path) -> None:
    trace = tmp_path / "t.duckdb"
    attached = subprocess.Popen([*FDTRACE, "attach", str(engine.pid), "-o", str(trace)], cwd=ROOT)
    wait_for(has_steps(trace))
    attached.send_signal(signal.SIGINT)
    assert attached.wait(timeout=900) == 0
    agrees(trace, tmp_path / "log")
    assert not parts_directory(trace).exists()
    count = num_logged(tmp_path / "log")
    wait_for(lambda: num_logged(tmp_path / "log") > count)


def test_the_engine_killed_under_an_attach_leaves_all_its_steps(engine: Any, tmp_path: Path) -> None:
    trace = tmp_path / "t.duckdb"
    attached = subprocess.Popen([*FDTRACE, "attach", str(engine.pid), "-o", str(trace)], cwd=ROOT)
    wait_for(has_steps(trace))
    engine.kill()
    engine.wait()
    assert attached.wait(timeout=900) == 0
    found, whole = recorded(trace), logged(tmp_path / "log")
    assert set(range(min(found), max(whole) + 1)) <= set(found)
    assert query(trace, "SELECT ended_by FROM trace") == [("exit",)]


def test_an_idle_engine_is_attached_and_detached(engine: Any, tmp_path: Path, impatient: None) -> None:
    idle, trace = tmp_path / "idle", tmp_path / "t.duckdb"
    wait_for(lambda: num_logged(tmp_path / "log") > 0)  # armed, it takes orders from its first call on
    idle.touch()
    wait_for((tmp_path / "idle.seen").exists)
    session = Session.create(trace)
    (reached,) = attach_server.attach(engine.pid, session)
    assert reached.waiting == (reached.method == "armed")
    left = attach_server.detach(session.id)
    assert bool(left) == (reached.method == "armed" and not reached.waiting)
    idle.unlink()
    count = num_logged(tmp_path / "log")
    wait_for(lambda: num_logged(tmp_path / "log") > count + 5)
    session.remove_rings()


def test_a_process_below_the_given_one_is_found(tmp_path: Path) -> None:
    engine_log = tmp_path / "log"
    script = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            script,
            sys.executable,
            str(ENGINE),
            "--sleep",
            "0.002",
            "--log",
            str(engine_log),
        ],
        start_new_session=True,
    )
    try:
        wait_for(lambda: engine_log.exists() and num_logged(engine_log) > 3)
        trace = tmp_path / "t.duckdb"
        done = fdtrace_here("attach", parent.pid, "-o", trace, "--steps", 30)
        assert done.returncode == 0, done.stderr
        assert len(agrees(trace, engine_log)) == 30
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()


def test_a_python_without_a_scheduler_is_left_alone_and_said(tmp_path: Path) -> None:
    script = "import time; print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        done = fdtrace_here("attach", process.pid, "-o", tmp_path / "t.duckdb")
        assert done.returncode == 3
        assert "no scheduler was found" in done.stderr
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.wait()


def test_a_method_wrapped_again_by_another_is_left_inert_and_named(tmp_path: Path) -> None:
    engine = start_engine("--log", tmp_path / "log", "--sleep", 0.002, "--wrap")
    session = Session.create(tmp_path / "t.duckdb")
    attach_server.attach(engine.pid, session)
    engine.send_signal(signal.SIGUSR1)
    count = num_logged(tmp_path / "log")
    wait_for(lambda: num_logged(tmp_path / "log") > count + 5)
    (left,) = attach_server.detach(session.id)
    assert "wrap_again" in left
    assert stop_engine(engine)["steps"] > 0
    session.remove_rings()


def test_two_recordings_of_one_process_refuse_each_other(tmp_path: Path) -> None:
    engine = start_engine("--log", tmp_path / "log", "--sleep", 0.002)
    one, two = Session.create(tmp_path / "one.duckdb"), Session.create(tmp_path / "two.duckdb")
    attach_server.attach(engine.pid, one)
    with pytest.raises(TargetError, match="already recorded"):
        attach_server.attach(engine.pid, two)
    assert attach_server.detach(one.id) == []
    assert stop_engine(engine)["hooked"] is False
    one.remove_rings()
    two.remove_rings()


def wait_for(holds: Any, seconds: float = 900.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may record another user's process")
def test_root_records_another_users_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FDTRACE_DIR")
    candidates = [Path(sys.executable).resolve(), Path("/usr/bin/python3")]
    python = next((p for p in candidates if p.exists() and not str(p).startswith("/root")), None)
    if python is None or not ENGINE.stat().st_mode & 0o004:
        pytest.skip("no Python or no engine that another user may run")
    command = [str(python), str(ENGINE), "--sleep", "0.002"]
    engine = subprocess.Popen(command, user=65534, cwd="/", stdout=subprocess.PIPE, text=True)
    try:
        assert engine.stdout is not None
        assert engine.stdout.readline().startswith("ready")
        trace = tmp_path / "t.duckdb"
        done = fdtrace_here("attach", engine.pid, "-o", trace, "--steps", 20)
        assert done.returncode == 0, done.stderr
        assert query(trace, "SELECT count(*) FROM step") == [(20,)]
    finally:
        engine.kill()
        engine.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to make a mount namespace")
def test_a_process_in_a_container_is_said_and_left_alone(tmp_path: Path) -> None:
    command = ["unshare", "--mount", sys.executable, str(ENGINE), "--sleep", "0.002"]
    engine = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert engine.stdout is not None
        if not engine.stdout.readline().startswith("ready"):
            pytest.skip("no mount namespaces here")
        done = fdtrace_here("attach", engine.pid, "-o", tmp_path / "t.duckdb")
        assert done.returncode == 3
        assert "container" in done.stderr
        assert list(tmp_path.iterdir()) == []
    finally:
        engine.kill()
        engine.wait()

"""Each cause that stands in the way has its own error, and the process is as it was."""

from __future__ import annotations

import dataclasses
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fdtrace.recorder.errors import TargetError
from fdtrace.recorder.inject import check_target, inject_errors, injector, run_in_process, thread_choice
from tests.inject.conftest import Start, refusal, untouched


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_every_cause_has_a_code_of_its_own() -> None:
    classes = inject_errors.InjectError.__subclasses__()
    assert {kind.code for kind in classes} == {
        *(
            "no_process",
            "not_a_process",
            "zombie",
            "not_cpython",
            "other_user",
            "no_ptrace",
            "yama",
            "seccomp",
        ),
        *(
            "traced",
            "stopped",
            "stuck",
            "no_trap",
            "gil_held",
            "ended",
            "foreign_breakpoint",
            "no_safe_point",
        ),
        *("not_x86_64", "agent_failed"),
    }
    assert len({kind.code for kind in classes}) == len(classes)
    assert all(issubclass(kind, TargetError) for kind in classes)


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**40])
def test_no_process(pid: int) -> None:
    assert refusal(pid).code == "no_process"


def test_a_thread_is_not_a_process(start: Start) -> None:
    program = start("wait", "nanosleep")
    program.moves(1, by=1)
    error = refusal(program.counter(2))
    assert error.code == "not_a_process"
    assert str(program.pid) in error.hint
    assert untouched(program)


def test_a_zombie() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    error = refusal(process.pid)
    assert error.code == "zombie"
    assert str(os.getpid()) in error.why
    assert process.wait() == 0


def test_not_cpython(sleeper: subprocess.Popen[bytes]) -> None:
    error = refusal(sleeper.pid)
    assert error.code == "not_cpython"
    assert "sleep" in error.why or "coreutils" in error.why
    assert sleeper.poll() is None


def test_a_kernel_thread_is_not_cpython() -> None:
    if not os.path.exists("/proc/2/comm") or Path("/proc/2/comm").read_text() != "kthreadd\n":
        pytest.skip("no kernel thread is visible here")
    if os.geteuid() != 0:
        pytest.skip("only root may look")
    assert refusal(2).code == "not_cpython"


def test_stopped(start: Start) -> None:
    program = start("spinning")
    os.kill(program.pid, signal.SIGSTOP)
    program.wait_until(lambda: "T (stopped)" in Path(f"/proc/{program.pid}/status").read_text())
    error = refusal(program.pid)
    assert error.code == "stopped"
    assert f"kill -CONT {program.pid}" in error.hint
    assert "T (stopped)" in Path(f"/proc/{program.pid}/status").read_text()
    os.kill(program.pid, signal.SIGCONT)
    program.moves(1)
    assert untouched(program)


def test_traced_by_another(start: Start) -> None:
    program = start("spinning")
    code = f"from fdtrace.recorder.inject.ptrace import Tracee\nTracee({program.pid})\nprint(flush=True)\ninput()"
    tracer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert tracer.stdout is not None
    tracer.stdout.readline()
    error = refusal(program.pid)
    assert error.code == "traced"
    assert str(tracer.pid) in error.why
    tracer.communicate(b"\n")
    program.moves(1)
    assert untouched(program)


def test_one_thread_traced_by_another(start: Start) -> None:
    """The process itself shows no tracer; the borrowed thread does."""
    program = start("wait", "nanosleep")
    program.moves(1, by=1)
    code = (
        f"from fdtrace.recorder.inject.ptrace import Tracee\nTracee({program.counter(2)})\nTracee({program.pid})\n"
        "print(flush=True)\ninput()"
    )
    tracer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert tracer.stdout is not None
    tracer.stdout.readline()
    assert refusal(program.pid).code == "traced"
    tracer.communicate(b"\n")
    assert untouched(program)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="tracemalloc no longer takes the GIL there")
def test_a_thread_that_cannot_start_another_is_left_to_put_itself_back(start: Start) -> None:
    program = start("tracing_memory")
    program.wait_until(lambda: any(t.call == 35 for t in thread_choice.sorted_threads(program.pid)))
    assert refusal(program.pid).code == "no_trap"
    with open(f"/proc/{program.pid}/fd/{program.counter(1)}", "wb") as pipe:
        pipe.write(b"x")
    program.moves(2, 3, by=2)
    assert untouched(program)
    assert program.counter(15) == 0, program.complaints()


def test_stuck_in_the_kernel(start: Start) -> None:
    program = start("stuck")
    program.wait_until(lambda: "State:\tD" in Path(f"/proc/{program.pid}/status").read_text())
    assert refusal(program.pid).code == "stuck"
    assert "State:\tD" in Path(f"/proc/{program.pid}/status").read_text()
    assert "TracerPid:\t0" in Path(f"/proc/{program.pid}/status").read_text()
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)


def test_a_breakpoint_that_is_not_ours(start: Start) -> None:
    program = start("booby_trapped")
    assert refusal(program.pid).code == "foreign_breakpoint"
    program.moves(1)
    assert program.complaints() == ""


def test_no_safe_point(start: Start) -> None:
    """Blocked in a write, which would return early if it were interrupted."""
    program = start("blocked", "write")
    program.wait_until(lambda: Path(f"/proc/{program.pid}/syscall").read_text().startswith("1 "))
    error = refusal(program.pid)
    assert error.code == "no_safe_point"
    assert "FDTRACE=1" in error.hint
    assert program.process.poll() is None


def test_ended_while_we_attach(start: Start) -> None:
    """It ends when its first Python code runs: after we have looked at it, before it calls back."""
    program = start("holding_the_gil")
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {program.pid}"])
    with pytest.raises(inject_errors.TargetEnded) as caught:
        run_in_process(program.pid, "pass", timeout=300)
    assert caught.value.code == "ended"
    killer.wait()
    assert program.process.wait() == -9  # its status is still there for its parent


def test_a_pid_that_was_given_to_another_process_is_not_attached_to(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = start("blocked", "sleep")
    seen = check_target(program.pid)
    earlier = dataclasses.replace(seen, start_time=seen.start_time - 1)
    monkeypatch.setattr(injector, "check_target", lambda pid, force: earlier)
    assert refusal(program.pid).code == "ended"
    assert os.listdir(f"/proc/{program.pid}/task") == [str(program.pid)]


def test_another_machine(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    program = start("blocked", "sleep")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    error = refusal(program.pid)
    assert error.code == "not_x86_64"
    assert "aarch64" in error.why
    assert "FDTRACE=1" in error.hint

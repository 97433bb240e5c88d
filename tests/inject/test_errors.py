"""Each cause that stands in the way has its own error, and the process is as it was."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recorder.errors import TargetError
from recorder.inject import check_target, errors, injector, parked, run_in_process, target
from tests.inject.conftest import Running, Start

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
INSTALL = "import builtins\nbuiltins.installed = True"
IMPORT = """
import _socket, json, os, struct, sys, time
from recorder.inject import run_in_process
from recorder.errors import TargetError
"""
ATTACH = """
try:
    run_in_process(int(sys.argv[1]), "pass", timeout=1)
    print(json.dumps(["none", "", ""]))
except TargetError as error:
    print(json.dumps([error.code, error.why, error.hint]))
"""
BECOME_NOBODY = """
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
"""
# Drop CAP_SYS_PTRACE (19) from the effective set, staying root: what a container's root has.
DROP_CAPABILITY = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
data = (ctypes.c_uint32 * 6)()
assert libc.capget(header, data) == 0
for i in range(3):
    data[i] &= ~(1 << 19)
assert libc.capset(header, data) == 0
"""
# A filter that answers ptrace (101) with EPERM, as Docker's did on kernels before 4.8.
FORBID_PTRACE = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
code = b"".join(struct.pack("HBBI", *op) for op in [
    (0x20, 0, 0, 0), (0x15, 0, 1, 101), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)])
room = ctypes.create_string_buffer(code, len(code))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 4, ctypes.addressof(room)), 16)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0
"""


def attach_from(preparation: str, pid: int) -> tuple[str, str, str]:
    """(code, why, hint) that a tool gets that did `preparation` first."""
    code = IMPORT + preparation + ATTACH
    done = subprocess.run([sys.executable, "-c", code, str(pid)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout))


def refusal(pid: int) -> errors.InjectError:
    with pytest.raises(errors.InjectError) as caught:
        run_in_process(pid, INSTALL, timeout=1)
    error = caught.value
    assert error.code
    assert error.what
    assert error.hint
    assert error.exit_code == 3
    return error


def untouched(program: Running) -> bool:
    """Whether it still answers, with nothing installed."""
    source = "import builtins\nresult = hasattr(builtins, 'installed')"
    return run_in_process(program.pid, source).value is False


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_every_cause_has_a_code_of_its_own() -> None:
    classes = errors.InjectError.__subclasses__()
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
    code = f"from recorder.inject.ptrace import Tracee\nTracee({program.pid})\nprint(flush=True)\ninput()"
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
        f"from recorder.inject.ptrace import Tracee\nTracee({program.counter(2)})\nTracee({program.pid})\n"
        "print(flush=True)\ninput()"
    )
    tracer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert tracer.stdout is not None
    tracer.stdout.readline()
    assert refusal(program.pid).code == "traced"
    tracer.communicate(b"\n")
    assert untouched(program)


@needs_root
def test_another_user_s(start: Start) -> None:
    program = start("blocked", "sleep")
    code, why, hint = attach_from(BECOME_NOBODY, program.pid)
    assert code == "other_user"
    assert "65534" in why
    assert "sudo" in hint
    assert untouched(program)


@needs_root
def test_root_without_the_capability_to_trace(start: Start) -> None:
    program = start("blocked", "sleep")
    code, _, hint = attach_from(DROP_CAPABILITY, program.pid)
    assert code == "no_ptrace"
    assert "--cap-add SYS_PTRACE" in hint
    assert untouched(program)


@pytest.mark.parametrize("scope", [1, 2, 3])
def test_yama(start: Start, monkeypatch: pytest.MonkeyPatch, scope: int) -> None:
    """Not every kernel has Yama, and its setting is the whole machine's: the kernel's answers are doubled."""
    program = start("blocked", "sleep")
    read_status = target.read_status

    def refuse(pid: int) -> None:
        raise PermissionError

    def status(path: str) -> dict[str, str]:
        if path.startswith("/proc/self/"):
            return {"CapEff": f"{1 << 19 if scope == 3 else 0:x}", "Seccomp": "0"}
        return {**read_status(path), "Uid": "1 1 1 1"}

    monkeypatch.setattr(target, "Memory", refuse)
    monkeypatch.setattr(target, "read_status", status)
    monkeypatch.setattr(
        target, "read_small", lambda path, default="": str(scope) if "yama" in path else default
    )
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    error = refusal(program.pid)
    assert error.code == "yama"
    assert ("sysctl kernel.yama.ptrace_scope=0" in error.hint) is (scope < 3)


def test_seccomp_forbids_us_to_trace(start: Start) -> None:
    program = start("blocked", "sleep")
    code, why, hint = attach_from(FORBID_PTRACE, program.pid)
    assert code == "seccomp"
    assert "filter" in why
    assert "seccomp=unconfined" in hint
    assert untouched(program)


@pytest.mark.parametrize("answer", ["0x50001", "0x30000"], ids=["error", "signal"])
def test_seccomp_forbids_the_target_executable_memory(start: Start, answer: str) -> None:
    program = start("confined", answer)
    assert refusal(program.pid).code == "seccomp"
    program.moves(1)
    assert program.complaints() == ""


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="tracemalloc no longer takes the GIL there")
def test_a_thread_that_cannot_start_another_is_left_to_put_itself_back(start: Start) -> None:
    program = start("tracing_memory")
    program.wait_until(lambda: any(t.call == 35 for t in parked.look(program.pid)))
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
    with pytest.raises(errors.Ended) as caught:
        run_in_process(program.pid, "pass", timeout=30)
    assert caught.value.code == "ended"
    killer.wait()
    assert program.process.wait() == -9  # its status is still there for its parent


def test_a_pid_that_was_given_to_another_process_is_not_attached_to(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = start("blocked", "sleep")
    seen = check_target(program.pid)
    earlier = dataclasses.replace(seen, start_time=seen.start_time - 1)
    monkeypatch.setattr(injector, "check_target", lambda pid: earlier)
    assert refusal(program.pid).code == "ended"
    assert os.listdir(f"/proc/{program.pid}/task") == [str(program.pid)]


def test_another_machine(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    program = start("blocked", "sleep")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    error = refusal(program.pid)
    assert error.code == "not_x86_64"
    assert "aarch64" in error.why
    assert "FDTRACE=1" in error.hint


@needs_root
def test_root_attaches_to_another_user_s_process(start: Start) -> None:
    """The socket's directory is handed to that user; nothing of it stays behind."""
    code = IMPORT + BECOME_NOBODY + "print(flush=True)\ntime.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        before = set(os.listdir("/tmp"))
        assert run_in_process(process.pid, "import os\nresult = os.getuid()").value == 65534
        assert not {name for name in set(os.listdir("/tmp")) - before if name.startswith("fdtrace-")}
    finally:
        process.kill()
        process.communicate()


@needs_root
def test_a_process_with_a_tmp_of_its_own(start: Start, tmp_path: Path) -> None:
    """As in a container: the socket lies where the process sees it."""
    code = (
        "import ctypes, time\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.unshare(0x20000) == 0\nassert libc.mount(None, b'/', None, 0x44000, None) == 0\n"
        "assert libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0\nprint(flush=True)\ntime.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            pytest.skip("no mount namespaces here")
        assert run_in_process(process.pid, "import os\nresult = os.listdir('/tmp')").value == []
    finally:
        process.kill()
        process.communicate()


@needs_root
def test_a_user_attaches_to_a_process_of_its_own(start: Start) -> None:
    """With no privilege at all: no real-time priority, no change of owner."""
    code = f"""{IMPORT}{BECOME_NOBODY}
import ctypes
ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE, lost with the change of user
child = os.fork()
if child == 0:
    time.sleep(600)
try:
    print(run_in_process(child, "import os; result = os.getuid()").value)
finally:
    os.kill(child, 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("65534\n", "")

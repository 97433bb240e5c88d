"""Who may attach to whose process, what stands in the way, and how that is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fdtrace.recorder.inject import callback_socket, inject_errors, run_in_process, target
from fdtrace.recorder.inject.proc import read_status
from tests.inject.conftest import INSTALL, Start, refusal, untouched

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
IMPORT = """
import _socket, json, os, struct, sys, time
from fdtrace.recorder.inject import run_in_process
from fdtrace.recorder.errors import TargetError
"""
ATTACH = """
try:
    run_in_process(int(sys.argv[1]), "pass", timeout=20)
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
FORBID_REBOOT = FORBID_PTRACE.replace("101)", "169)")


def attach_from(preparation: str, pid: int) -> tuple[str, str, str]:
    """(code, why, hint) that a tool gets that did `preparation` first."""
    code = IMPORT + preparation + ATTACH
    done = subprocess.run([sys.executable, "-c", code, str(pid)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout))


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

    def refuse(pid: int) -> None:
        raise PermissionError

    def status(path: str) -> dict[str, str]:
        if path.startswith("/proc/self/"):
            return {"CapEff": f"{1 << 19 if scope == 3 else 0:x}", "Seccomp": "0"}
        return {**read_status(path), "Uid": "1 1 1 1"}

    monkeypatch.setattr(target, "ProcessMemory", refuse)
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
    program = start("confined", "mmap", answer)
    with pytest.raises(inject_errors.Seccomp, match="filter"):
        run_in_process(program.pid, INSTALL, timeout=20, force=True)
    program.moves(1)
    assert program.complaints() == ""


KILL = "0x80000000"


@pytest.mark.parametrize("call", ["socket", "mmap"])
def test_a_process_under_a_filter_is_left_alone_unless_forced(start: Start, call: str) -> None:
    """A filter that kills for a call of ours would kill the process: what it does is not to be seen beforehand."""
    program = start("confined", call, KILL)
    error = refusal(program.pid)
    assert error.code == "seccomp"
    assert "1 filter looks at its system calls (0 at ours)" in error.why
    assert "--force" in error.hint
    assert "FDTRACE=1" in error.hint
    program.moves(1)
    assert program.complaints() == ""


def test_a_process_under_a_filter_that_allows_our_calls_is_entered_when_forced(start: Start) -> None:
    program = start("confined", "ptrace", KILL)
    assert refusal(program.pid).code == "seccomp"
    assert run_in_process(program.pid, "result = 7", force=True).value == 7
    program.moves(1)


def test_the_filter_of_a_container_that_we_are_in_as_well_is_no_hindrance(start: Start) -> None:
    """The same filters are on our own calls, and have let us make them."""
    code = f"{IMPORT}{FORBID_REBOOT}\nchild = os.fork()\nif child == 0:\n    time.sleep(600)\n"
    code += "try:\n    print(run_in_process(child, 'result = 7').value)\nfinally:\n    os.kill(child, 9)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_a_thread_that_is_under_a_filter_of_its_own_is_not_borrowed(start: Start) -> None:
    program = start("confined_thread", "socket", KILL)
    outcome = run_in_process(program.pid, "import os\nresult = os.getpid()")
    assert (outcome.value, outcome.tid) == (program.pid, program.pid)
    program.moves(1)


@needs_root
def test_root_attaches_to_another_user_s_process(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket's directory is handed to that user; nothing of it stays behind."""
    code = IMPORT + BECOME_NOBODY + "print(flush=True)\ntime.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with tempfile.TemporaryDirectory() as sockets:  # pytest's own directories are this user's alone
        os.chmod(sockets, 0o1777)
        monkeypatch.setattr(callback_socket, "DIRECTORIES", (sockets,))
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert run_in_process(process.pid, "import os\nresult = os.getuid()").value == 65534
            assert os.listdir(sockets) == []
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

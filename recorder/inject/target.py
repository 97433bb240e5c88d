"""Look at a process before touching it: may we, can we, is it CPython."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from fdtrace.recorder.inject import inject_errors
from fdtrace.recorder.inject.escape import find_instructions
from fdtrace.recorder.inject.memory import Mapping, ProcessMemory, mappings
from fdtrace.recorder.inject.proc import num_filters, read_small, read_stat, read_status
from fdtrace.recorder.inject.ptrace import PTRACE_GETEVENTMSG, ptrace
from fdtrace.recorder.inject.python import Python, find_python
from fdtrace.recorder.inject.users import User, user_in

_CAP_SYS_PTRACE = 1 << 19
_SECCOMP_STRICT, _SECCOMP_FILTER = "1", "2"
ANY_FILTERS = 1 << 30


@dataclass(frozen=True)
class Target:
    """A process that can be attached to.

    `start_time` is in clock ticks since boot, `user` the one that its file accesses are checked with,
    `syscall_at` the address of a `syscall` instruction in it. Threads of it that are under more than `filters_allowed`
    seccomp filters are left alone.
    """

    pid: int
    start_time: int
    user: User
    python: Python
    syscall_at: int
    sigreturn_at: int
    filters_allowed: int


def check_process(pid: int) -> None:
    """NoProcess, NotAProcess or Zombie where `pid` is no process that runs; all else is `check_target`'s."""
    try:
        status = read_status(f"/proc/{pid}/status") if pid > 0 else {}
    except (FileNotFoundError, ProcessLookupError):
        status = {}
    if not status:
        raise inject_errors.NoProcess(pid)
    _check_lives(pid, status)


def is_python(pid: int) -> bool | None:
    """Whether the process has CPython loaded; None where that may not be read."""
    try:
        return find_python(pid, mappings(pid)) is not None
    except PermissionError:
        return None
    except OSError:
        return False


def check_target(pid: int, *, force: bool = False) -> Target:
    """Look at the process without changing anything in it; the error says which of the causes stands in the
    way. With `force` a seccomp filter of the process is none.
    """
    machine = platform.machine()
    if machine != "x86_64":
        raise inject_errors.NotX8664(pid, machine)
    try:
        return _check(pid, force)
    except (FileNotFoundError, ProcessLookupError):
        raise inject_errors.NoProcess(pid) from None


def _check(pid: int, force: bool) -> Target:
    if pid <= 0:
        raise inject_errors.NoProcess(pid)
    status = read_status(f"/proc/{pid}/status")
    _check_state(pid, status)
    _check_permission(pid, status)
    allowed = ANY_FILTERS if force else _filters_allowed(pid, status)
    exe = _executable(pid)
    if exe and not _is_x86_64(pid):
        raise inject_errors.NotX8664(pid, "a program for another machine, or of 32 bits")
    maps = mappings(pid)  # read once: of a server that has loaded hundreds of libraries it takes milliseconds
    python = find_python(pid, maps) if exe else None
    if python is None:
        if read_status(f"/proc/{pid}/status")["State"][0] in "ZX":
            raise inject_errors.TargetEnded(pid)
        raise inject_errors.NotCPython(pid, exe or "a kernel thread")
    start_time = read_stat(f"/proc/{pid}/stat").start_time
    call, back = find_instructions(pid, maps)
    call = call or _syscall_in_vdso(pid, maps)
    return Target(pid, start_time, user_in(status), python, call, back, allowed)


def _filters_allowed(pid: int, status: dict[str, str]) -> int:
    """How many seccomp filters a thread may be under that we use. Seccomp where its main thread is under more.

    A filter may kill a process for a call that our lines in it make, and nobody can ask a filter what it does. Filters
    that we are under as well, as in one container, have let us make those calls.
    """
    own = num_filters(read_status("/proc/self/status"))
    allowed = own if own and shares_our_files(pid) else 0
    theirs = num_filters(status)
    if theirs > allowed:
        raise inject_errors.Seccomp.may_kill(pid, theirs, own)
    return allowed


def shares_our_files(pid: int) -> bool:
    """Whether a path means the same for us and the process: the same mount namespace and root."""
    try:
        mine, theirs = os.stat("/proc/self/ns/mnt"), os.stat(f"/proc/{pid}/ns/mnt")
        same_root = os.path.samestat(os.stat("/"), os.stat(f"/proc/{pid}/root/"))
    except OSError:
        return False
    return os.path.samestat(mine, theirs) and same_root


def _syscall_in_vdso(pid: int, maps: list[Mapping]) -> int:
    """Every process has the kernel's vdso mapped, and that holds calls which fall back to the kernel."""
    vdso = next(m for m in maps if m.path == "[vdso]")
    with ProcessMemory(pid) as memory:
        at = memory.read(vdso.start, vdso.end - vdso.start).find(b"\x0f\x05")
    if at < 0:
        raise inject_errors.NoSafePoint(pid, "no system call instruction was found in it")
    return vdso.start + at


def _check_lives(pid: int, status: dict[str, str]) -> None:
    if int(status["Tgid"]) != pid:
        raise inject_errors.NotAProcess(pid, int(status["Tgid"]))
    if status["State"][0] in "ZX":
        raise inject_errors.Zombie(pid, int(status["PPid"]))


def _check_state(pid: int, status: dict[str, str]) -> None:
    _check_lives(pid, status)
    state, tracer = status["State"][0], int(status["TracerPid"])
    if tracer:
        raise inject_errors.Traced(pid, tracer, read_small(f"/proc/{tracer}/comm", "unknown"))
    if state in "Tt":
        raise inject_errors.Stopped(pid)
    if status.get("Seccomp") == _SECCOMP_STRICT:
        raise inject_errors.Seccomp(pid, "it may make no system calls but read and write")


def _executable(pid: int) -> str:
    """The path of its program, "" for a kernel thread."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except FileNotFoundError:
        return ""


def _is_x86_64(pid: int) -> bool:
    """What its program file is for: ELF, 64 bits, EM_X86_64."""
    with open(f"/proc/{pid}/exe", "rb") as file:
        header = file.read(20)
    return header[4:5] == b"\x02" and header[18:20] == b"\x3e\x00"


def _check_permission(pid: int, status: dict[str, str]) -> None:
    try:
        with ProcessMemory(pid):  # needs the right to attach (PTRACE_MODE_ATTACH), and attaches to nothing
            pass
    except PermissionError:
        raise _why_refused(pid, status) from None
    except FileNotFoundError:
        raise
    except OSError:
        return  # a kernel thread has no memory to open
    try:
        ptrace(
            PTRACE_GETEVENTMSG, pid
        )  # of a process that we do not trace: ESRCH, unless a filter answers first
    except ProcessLookupError:
        return
    except OSError as error:
        why = f"the filter that this command runs under answers ptrace with: {error.strerror}"
        raise inject_errors.Seccomp(pid, why) from None


def refused(pid: int) -> inject_errors.InjectError:
    """The cause of an EPERM from ptrace itself."""
    status = read_status(f"/proc/{pid}/status")
    _check_state(pid, status)
    for name in os.listdir(f"/proc/{pid}/task"):
        tracer = int(read_status(f"/proc/{pid}/task/{name}/status")["TracerPid"])
        if tracer and tracer != os.getpid():
            return inject_errors.Traced(pid, tracer, read_small(f"/proc/{tracer}/comm", "unknown"))
    return _why_refused(pid, status)


def _why_refused(pid: int, status: dict[str, str]) -> inject_errors.InjectError:
    own = read_status("/proc/self/status")
    me, owner = os.geteuid(), int(status["Uid"].split()[1])
    can_trace_all = bool(int(own["CapEff"], 16) & _CAP_SYS_PTRACE)
    scope = int(read_small("/proc/sys/kernel/yama/ptrace_scope", "0"))
    if not can_trace_all and me == 0:
        return inject_errors.NoPtrace(pid, "this is root without CAP_SYS_PTRACE, as in most containers")
    if not can_trace_all and me != owner:
        return inject_errors.OtherUser(pid, owner, me)
    if scope == 3 or (scope and not can_trace_all):
        return inject_errors.Yama(pid, scope)
    if own.get("Seccomp") == _SECCOMP_FILTER:
        return inject_errors.Seccomp(pid, "this command runs under a filter, and the kernel answered EPERM")
    if not can_trace_all:
        return inject_errors.NoPtrace(pid, "it has privileges that we lack, or has made itself undumpable")
    return inject_errors.NoPtrace(
        pid, "it lives in another user namespace, or a security module (AppArmor, SELinux) forbids it"
    )

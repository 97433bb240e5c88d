"""Which thread may be borrowed, and how it goes on waiting afterwards as if nothing had happened.

A thread that waits in one of `WAITS` is in the C library's wrapper of that call. There it holds no lock of the memory
allocator or the loader, so it can start a thread. Afterwards it must wait again: without EINTR, without an early
return.

The kernel decides what an interrupted wait does, and shows it in rax (signal(7), "Interruption of system calls
and library functions by stop signals", and arch/x86/kernel/signal.c):
- ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND: called again with the same arguments (read, recv, accept,
  wait4, futex without timeout; select, pselect and ppoll write the time that is left back first;
  clock_nanosleep until a time).
- ERESTART_RESTARTBLOCK: goes on through restart_syscall with the time that was left (poll, nanosleep,
  clock_nanosleep, futex with timeout). The kernel keeps that time for each thread, so a borrowed thread must
  not itself be interrupted in such a wait.
- EINTR, with nothing restarted: epoll_*, semop and semtimedop, sigtimedwait, and sockets with SO_RCVTIMEO.
  `undisturbed` turns this into ERESTARTNOHAND. The kernel then makes the call again, or returns EINTR if a handler of
  the program is to run: the same as without us. A wait with a timeout begins again with its whole timeout, because
  nothing tells when it began. It never gets shorter, but may take up to twice as long. So these threads are the last
  choice among the waiting ones.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from fdtrace.recorder.inject.proc import num_filters, read_small, read_status, threads
from fdtrace.recorder.inject.ptrace import Registers

ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = 512, 513, 514, 516
RESTART_SYSCALL = 219
_RESTARTS = (ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK)
_CONNECT = 42
_FUTEX, _FUTEX_WAIT, _FUTEX_WAIT_BITSET = 202, 0, 9
_MSG_WAITALL = 0x100

WAITS = {
    0: "read",
    7: "poll",
    23: "select",
    34: "pause",
    35: "nanosleep",
    43: "accept",
    45: "recvfrom",
    47: "recvmsg",
    61: "wait4",
    65: "semop",
    70: "msgrcv",
    128: "rt_sigtimedwait",
    130: "rt_sigsuspend",
    _FUTEX: "futex",
    RESTART_SYSCALL: "restart_syscall",
    220: "semtimedop",
    230: "clock_nanosleep",
    232: "epoll_wait",
    247: "waitid",
    270: "pselect6",
    271: "ppoll",
    281: "epoll_pwait",
    288: "accept4",
    441: "epoll_pwait2",
}
"""x86_64 numbers of the calls in which a thread may be borrowed. Not write, send or readv: they return early with what
was done so far. Not connect: it cannot be called again."""

_BEGIN_AGAIN = {232: 3, 281: 3, 441: 3, 220: 3, 128: 2}
"""Calls that fail with EINTR -> the index of their timeout argument."""


@dataclass(frozen=True)
class Thread:
    """A thread as /proc shows it. `call` is the system call in which it waits; None when it runs.

    `num_filters` is the number of seccomp filters on its calls.
    """

    tid: int
    state: str
    call: int | None
    arguments: tuple[int, ...]
    num_switches: int
    num_filters: int

    @property
    def is_parked(self) -> bool:
        return self.state == "S" and self.call is not None and is_wait(self.call, self.arguments)

    @property
    def begins_again(self) -> bool:
        """Whether an interrupted wait begins again with its whole timeout."""
        at = _BEGIN_AGAIN.get(-1 if self.call is None else self.call)
        if at is None:
            return False
        timeout = self.arguments[at]
        is_none = timeout == 0 if self.call in (441, 220, 128) else timeout & 0x80000000 != 0
        return not is_none


def is_wait(call: int, arguments: tuple[int, ...]) -> bool:
    """Whether a thread in this call may be borrowed."""
    if call == _FUTEX:
        # Condition variables and semaphores are safe. A mutex may be one of the allocator's, and a thread in fork()
        # holds others: glibc waits for a mutex in FUTEX_WAIT with the value 2.
        operation, value = arguments[1] & 0x7F, arguments[2] & 0xFFFFFFFF
        return operation == _FUTEX_WAIT_BITSET or (operation == _FUTEX_WAIT and value in (0, 0xFFFFFFFF))
    if call == 45:
        return not arguments[3] & _MSG_WAITALL
    if call == 47:
        return not arguments[2] & _MSG_WAITALL
    return call in WAITS


def sorted_threads(pid: int) -> list[Thread]:
    """Every thread of the process, the best to borrow first.

    First those whose wait restarts exactly; then not the main thread (it handles signals); then no futex (other
    threads may wait for this thread); then the thread with the fewest context switches so far.
    """
    candidates = [thread for tid in threads(pid) if (thread := _read(pid, tid)) is not None]
    candidates.sort(
        key=lambda t: (not t.is_parked, t.begins_again, t.tid == pid, t.call == _FUTEX, t.num_switches, t.tid)
    )
    return candidates


def _read(pid: int, tid: int) -> Thread | None:
    base = f"/proc/{pid}/task/{tid}"
    try:
        status = read_status(f"{base}/status")
    except (FileNotFoundError, ProcessLookupError):
        return None
    switches = sum(int(status.get(f"{kind}_ctxt_switches", 0)) for kind in ("voluntary", "nonvoluntary"))
    fields = read_small(f"{base}/syscall", "running").split()
    filters = num_filters(status)
    if fields[0] == "running" or fields[0] == "-1":
        return Thread(tid, status["State"][0], None, (), switches, filters)
    arguments = tuple(int(field, 16) for field in fields[1:7])
    return Thread(tid, status["State"][0], int(fields[0]), arguments, switches, filters)


def waits_for_mutex(pid: int, tid: int) -> bool:
    """Whether the thread waits for a mutex, as far as we can see: it is in a futex call that `is_wait` excludes."""
    thread = _read(pid, tid)
    return thread is not None and thread.call == _FUTEX and not is_wait(_FUTEX, thread.arguments)


def describe(pid: int, tid: int) -> str:
    """What a thread is doing, in a few words for an error message."""
    thread = _read(pid, tid)
    if thread is None:
        return "nothing: it has ended"
    if thread.call is None:
        return f"code of its own (state {thread.state})"
    return f"{WAITS.get(thread.call, f'system call {thread.call}')} (state {thread.state})"


def call_of(registers: Registers) -> int | None:
    """The system call that the stopped thread is in, or returns from; None if it was in the program's code."""
    return None if registers.orig_rax >> 63 else registers.orig_rax


def is_parked(registers: Registers) -> bool:
    """Whether the stopped thread is in one of `WAITS`."""
    call = call_of(registers)
    r = registers
    return call is not None and is_wait(call, (r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9))


def _failure(registers: Registers) -> int:
    """The error number in rax, 0 for none."""
    negative = (1 << 64) - registers.rax
    return negative if negative < 4096 else 0


def is_between_calls(registers: Registers) -> bool:
    """Whether the thread is in the program's code, or at the end of a completed system call."""
    return call_of(registers) is None or _failure(registers) not in (*_RESTARTS, errno.EINTR)


def undisturbed(registers: Registers) -> Registers:
    """The registers with which a stopped thread goes on as if it had never been stopped (see the top of this file)."""
    again = registers.copy()
    call = call_of(registers)
    if call is not None and call != _CONNECT and _failure(registers) == errno.EINTR:
        again.rax = (1 << 64) - ERESTARTNOHAND
    return again


def reissued(registers: Registers) -> tuple[int, int]:
    """(rip, rax) with which the thread restarts its call without the kernel: we do what the kernel's restart does."""
    failure = _failure(undisturbed(registers))
    call = call_of(registers)
    if call is None or failure not in _RESTARTS:
        return registers.rip, registers.rax
    return registers.rip - 2, RESTART_SYSCALL if failure == ERESTART_RESTARTBLOCK else call

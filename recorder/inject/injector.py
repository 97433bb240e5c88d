"""Runs source code in a Python process that does not expect it, without stopping the process."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from fdtrace.recorder.inject import inject_errors, thread_choice
from fdtrace.recorder.inject.borrowed_thread import BorrowedThread
from fdtrace.recorder.inject.callback_socket import CallbackSocket
from fdtrace.recorder.inject.conversation import Conversation
from fdtrace.recorder.inject.no_interruptions import in_own_thread, rest, run_uninterrupted
from fdtrace.recorder.inject.proc import read_small
from fdtrace.recorder.inject.target import Target, check_target, refused
from fdtrace.recorder.inject.tree import is_same_process

EntryMethod = Literal["remote_exec", "ptrace", "pending"]
_NUM_ATTEMPTS = 100
_PATIENT_ATTEMPTS = 5
_BETWEEN_ATTEMPTS_S, _LONGEST_BETWEEN_ATTEMPTS_S = 0.002, 0.03
"""The waits grow: some two seconds in all, so that a call of a second into a library does not outlast them."""
_REMOTE_EXEC_PATIENCE_S = 1.0


@dataclass(frozen=True)
class Entry:
    """How a process was entered, and the cost for that process.

    `method`: `remote_exec` (of the interpreter itself), `ptrace` (we started a thread from a borrowed one), or
    `pending` (queued for the main thread, because no thread was parked). `held_us` is the longest time for which any
    thread of the target was held; 0 for remote_exec. `tid` is the borrowed thread; 0 for none. `attempts` is the number
    of threads that were tried.
    """

    method: EntryMethod
    held_us: int
    tid: int
    attempts: int


@dataclass(frozen=True)
class InjectionResult(Entry):
    """An entry and its result. `value` is the source's `result`, decoded from JSON; `total_us` is the whole time."""

    value: Any
    total_us: int


def run_in_process(pid: int, source: str, *, timeout: float = 5.0, force: bool = False) -> InjectionResult:
    """Execute `source` in the process and return its `result`: `enter` with a single question."""
    begun = time.perf_counter()
    with enter(pid, timeout=timeout, force=force) as (entry, conversation):
        value = conversation.ask(source)
    return InjectionResult(**vars(entry), value=value, total_us=round((time.perf_counter() - begun) * 1e6))


@contextlib.contextmanager
def enter(pid: int, *, timeout: float = 5.0, force: bool = False) -> Iterator[tuple[Entry, Conversation]]:
    """Enter a process: it runs what the conversation asks, in a thread of its own and a fresh namespace.

    That thread ends when the context is left.

    Args:
        pid: the process.
        timeout: seconds until Python code of the target must run; and again, seconds for each question.
        force: also enter a process whose system calls a seccomp filter checks. The filter may kill it.

    Raises:
        InjectError: the process is as it was before, and nothing is installed. Only with AgentFailed something may be
            installed: the code that was asked to run raised that error itself.

    Each entry leaves a few KiB mapped in the target. Do not wait for the process (`Popen.wait`) in another thread at
    the same time. Code that is asked must not be the first to import `threading` in the process: `threading` would take
    our thread for the main one. Up to CPython 3.11, a child that the program forks while our thread registers with the
    interpreter may hang, as with any thread that Python did not start: HEAD_LOCK is not held over a fork.
    """
    target = check_target(pid, force=force)
    rest()
    with _pidfd(target) as pidfd:
        entry, peer = _called_back(target, pidfd, timeout)
        with peer, Conversation(pid, peer, timeout=timeout) as conversation:
            yield entry, conversation


def _called_back(target: Target, pidfd: int, timeout: float) -> tuple[Entry, socket.socket]:
    """Make our code run in the process, and wait until it connects."""
    with _explained(target), CallbackSocket(target.pid, target.user, timeout=timeout) as meeting:
        entry, peer = _by_remote_exec(target, meeting), None
        if entry is not None:
            peer = meeting.wait(pidfd, min(timeout, _REMOTE_EXEC_PATIENCE_S))
        if entry is None or peer is None:
            text = meeting.bootstrap().encode()
            entry = in_own_thread(lambda: _by_ptrace(target, text))
            peer = meeting.wait(pidfd, timeout)
        if peer is None:
            raise inject_errors.GilHeld(target.pid, timeout)
        return entry, peer


@contextlib.contextmanager
def _pidfd(target: Target) -> Iterator[int]:
    """A descriptor of exactly this process, even if its pid is reused."""
    try:
        pidfd = os.pidfd_open(target.pid)
    except ProcessLookupError:
        raise inject_errors.TargetEnded(target.pid) from None
    try:
        if not is_same_process(target.pid, target.start_time):
            raise inject_errors.TargetEnded(target.pid)
        yield pidfd
    except inject_errors.InjectError as error:
        # Whatever else went wrong: if the process has ended, that is the best explanation.
        if not isinstance(error, inject_errors.TargetEnded) and select.select([pidfd], [], [], 0)[0]:
            raise inject_errors.TargetEnded(target.pid) from error
        raise
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def _explained(target: Target) -> Iterator[None]:
    """Turn the system's errors about the process into causes that a user can act on."""
    try:
        yield
    except PermissionError:
        raise _refusal(target.pid) from None
    except (FileNotFoundError, ProcessLookupError):
        raise inject_errors.TargetEnded(target.pid) from None
    except OSError as error:
        raise inject_errors.NoPtrace(target.pid, f"the kernel refused a step of it: {error}") from error


def _refusal(pid: int) -> inject_errors.InjectError:
    try:
        return refused(pid)
    except (FileNotFoundError, ProcessLookupError):
        return inject_errors.TargetEnded(pid)


def _by_remote_exec(target: Target, meeting: CallbackSocket) -> Entry | None:
    """Ask the interpreter to run our code (PEP 768).

    None if either interpreter is older than 3.14, if their versions differ, or if the target's refuses.
    """
    remote_exec = getattr(sys, "remote_exec", None)
    if remote_exec is None or target.python.version != sys.version_info[:2]:
        return None
    try:
        remote_exec(target.pid, meeting.write_script())
    except (OSError, RuntimeError):  # disabled in the target (PYTHON_DISABLE_REMOTE_DEBUG)
        return None
    return Entry("remote_exec", 0, 0, 1)


def _by_ptrace(target: Target, text: bytes) -> Entry:
    """Try threads until one can be borrowed. Runs in a thread of its own (`in_own_thread`)."""
    longest = 0.0
    for attempt in range(_NUM_ATTEMPTS):
        if attempt:
            time.sleep(min(_BETWEEN_ATTEMPTS_S * 1.05**attempt, _LONGEST_BETWEEN_ATTEMPTS_S))
        may_queue = attempt >= _PATIENT_ATTEMPTS
        tid = _choose(target, attempt, may_queue=may_queue)
        if tid is None:
            continue
        with run_uninterrupted():
            borrowed = BorrowedThread(target, tid)
            method = _use(borrowed, text, may_queue=may_queue)
        longest = max(longest, borrowed.held_s)
        if method is not None:
            return Entry(method, round(longest * 1e6), tid, attempt + 1)
    raise _nothing_found(target)


def _choose(target: Target, attempt: int, *, may_queue: bool) -> int | None:
    """A parked thread. If none is parked, a running one with `may_queue`, else None."""
    threads = [t for t in thread_choice.sorted_threads(target.pid) if t.num_filters <= target.filters_allowed]
    waiting = [thread.tid for thread in threads if thread.is_parked]
    if waiting:
        return waiting[attempt % len(waiting)]
    # Only the main thread runs pending calls, so only it can be stopped while it holds their lock: take it last.
    running = [thread.tid for thread in threads if thread.state == "R"]
    running.sort(key=lambda tid: tid == target.pid)
    return running[attempt % len(running)] if running and may_queue else None


def _use(borrowed: BorrowedThread, text: bytes, *, may_queue: bool) -> EntryMethod | None:
    """Make the thread start the text; None if the thread is not (or no longer) at a place where it can."""
    method: EntryMethod | None = None
    with contextlib.suppress(ProcessLookupError), borrowed:
        if thread_choice.is_parked(borrowed.registers):
            method = "ptrace"
        elif may_queue and thread_choice.is_between_calls(borrowed.registers):
            method = "pending"
        if method is not None:
            borrowed.start(text, pending=method == "pending")
        return method
    return None


def _nothing_found(target: Target) -> inject_errors.InjectError:
    check_target(target.pid, force=True)  # the process may have been stopped in the meantime
    threads = thread_choice.sorted_threads(target.pid)
    if threads and all(thread.state == "D" for thread in threads):
        place = read_small(f"/proc/{target.pid}/wchan", "unknown")
        return inject_errors.Stuck(target.pid, place)
    why = f"in {_NUM_ATTEMPTS} tries no thread was found where it may be borrowed: waiting, or in Python code"
    return inject_errors.NoSafePoint(target.pid, why)

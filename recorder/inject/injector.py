"""Run source in a Python process that did not expect it, without stopping the process."""

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

from fdtrace.recorder.inject import inject_errors, parked
from fdtrace.recorder.inject.borrow import Borrowed
from fdtrace.recorder.inject.conversation import Conversation
from fdtrace.recorder.inject.meeting import Meeting
from fdtrace.recorder.inject.proc import read_small
from fdtrace.recorder.inject.quiet import in_own_thread, rest, undelayed
from fdtrace.recorder.inject.target import Target, check_target, refused
from fdtrace.recorder.inject.tree import is_same_process

Way = Literal["remote_exec", "ptrace", "pending"]
_NUM_ATTEMPTS = 20
_PATIENT_ATTEMPTS = 5
_BETWEEN_ATTEMPTS_S = 0.002
_REMOTE_EXEC_PATIENCE_S = 1.0


@dataclass(frozen=True)
class Entry:
    """How a process was entered, and what that cost it.

    `way`: `remote_exec` (the interpreter's own), `ptrace` (a thread started from a borrowed one), `pending`
    (queued for the main thread, no thread being parked). `held_us` is the longest time that any thread of the target
    was held, 0 for remote_exec. `tid` is the borrowed thread (0 for none), `attempts` how many were looked at.
    """

    way: Way
    held_us: int
    tid: int
    attempts: int


@dataclass(frozen=True)
class InjectionResult(Entry):
    """An entry, and what came back: `value` is the source's `result`, decoded from JSON; `total_us` is all of it."""

    value: Any
    total_us: int


def run_in_process(pid: int, source: str, *, timeout: float = 5.0, force: bool = False) -> InjectionResult:
    """Execute `source` in the process and return its `result`: an `enter` for one question."""
    begun = time.perf_counter()
    with enter(pid, timeout=timeout, force=force) as (entry, conversation):
        value = conversation.ask(source)
    return InjectionResult(**vars(entry), value=value, total_us=round((time.perf_counter() - begun) * 1e6))


@contextlib.contextmanager
def enter(pid: int, *, timeout: float = 5.0, force: bool = False) -> Iterator[tuple[Entry, Conversation]]:
    """Have the process run what it is asked, in a thread of its own and a fresh namespace, until this is left.

    `timeout` is in seconds, for Python code of the target to run, and again for each question to end. With `force` a
    process is entered whose system calls a seccomp filter looks at, which may kill it. Raises a
    `recorder.inject.errors.InjectError`; the process is then as it was, and nothing is installed unless the
    error is AgentFailed, which what it was asked itself raised.

    Each entry leaves a few KiB mapped in the target. Do not wait for the process (`Popen.wait`) in
    another thread meanwhile. What is asked must not be what first imports `threading` there: that makes its thread
    the main one. Up to CPython 3.11 a child that the program forks just while our thread registers with the
    interpreter may hang, as with any thread that is not Python's: HEAD_LOCK is not held over a fork.
    """
    target = check_target(pid, force=force)
    rest()
    with _pidfd(target) as pidfd:
        entry, peer = _called_back(target, pidfd, timeout)
        with peer, Conversation(pid, peer, timeout=timeout) as conversation:
            yield entry, conversation


def _called_back(target: Target, pidfd: int, timeout: float) -> tuple[Entry, socket.socket]:
    """Get our lines to run in the process, and its call."""
    with _explained(target), Meeting(target.pid, target.user, timeout=timeout) as meeting:
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
    """A descriptor of this very process, whatever becomes of its number."""
    try:
        pidfd = os.pidfd_open(target.pid)
    except ProcessLookupError:
        raise inject_errors.TargetEnded(target.pid) from None
    try:
        if not is_same_process(target.pid, target.start_time):
            raise inject_errors.TargetEnded(target.pid)
        yield pidfd
    except inject_errors.InjectError as error:
        # Whatever went wrong, that the process is gone explains it best.
        if not isinstance(error, inject_errors.TargetEnded) and select.select([pidfd], [], [], 0)[0]:
            raise inject_errors.TargetEnded(target.pid) from error
        raise
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def _explained(target: Target) -> Iterator[None]:
    """Turn what the system says about the process into the causes that a user can act on."""
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


def _by_remote_exec(target: Target, meeting: Meeting) -> Entry | None:
    """Ask the interpreter (PEP 768); None where it or ours is older than 3.14, or of another version, or
    refuses.
    """
    remote_exec = getattr(sys, "remote_exec", None)
    if remote_exec is None or target.python.version != sys.version_info[:2]:
        return None
    try:
        remote_exec(target.pid, meeting.write_script())
    except (OSError, RuntimeError):  # switched off there (PYTHON_DISABLE_REMOTE_DEBUG)
        return None
    return Entry("remote_exec", 0, 0, 1)


def _by_ptrace(target: Target, text: bytes) -> Entry:
    """Try threads until one can be borrowed. Runs in a thread of its own (`in_own_thread`)."""
    longest = 0.0
    for attempt in range(_NUM_ATTEMPTS):
        if attempt:
            time.sleep(_BETWEEN_ATTEMPTS_S)
        may_queue = attempt >= _PATIENT_ATTEMPTS
        tid = _choose(target, attempt, may_queue=may_queue)
        if tid is None:
            continue
        with undelayed():
            borrowed = Borrowed(target, tid)
            way = _use(borrowed, text, may_queue=may_queue)
        longest = max(longest, borrowed.held_s)
        if way is not None:
            return Entry(way, round(longest * 1e6), tid, attempt + 1)
    raise _nothing_found(target)


def _choose(target: Target, attempt: int, *, may_queue: bool) -> int | None:
    """A parked thread; with `may_queue` and none parked, a running one."""
    threads = [t for t in parked.look(target.pid) if t.num_filters <= target.filters_allowed]
    waiting = [thread.tid for thread in threads if thread.is_parked]
    if waiting:
        return waiting[attempt % len(waiting)]
    # The main thread runs pending calls, so that it alone can be stopped with their lock held: last.
    running = [thread.tid for thread in threads if thread.state == "R"]
    running.sort(key=lambda tid: tid == target.pid)
    return running[attempt % len(running)] if running and may_queue else None


def _use(borrowed: Borrowed, text: bytes, *, may_queue: bool) -> Way | None:
    """Have it start the text, None where it stands at no place for that (any more)."""
    way: Way | None = None
    with contextlib.suppress(ProcessLookupError), borrowed:
        if parked.is_parked(borrowed.registers):
            way = "ptrace"
        elif may_queue and parked.is_between_calls(borrowed.registers):
            way = "pending"
        if way is not None:
            borrowed.start(text, pending=way == "pending")
        return way
    return None


def _nothing_found(target: Target) -> inject_errors.InjectError:
    check_target(target.pid, force=True)  # it may have been stopped meanwhile
    threads = parked.look(target.pid)
    if threads and all(thread.state == "D" for thread in threads):
        where = read_small(f"/proc/{target.pid}/wchan", "unknown")
        return inject_errors.Stuck(target.pid, where)
    why = f"in {_NUM_ATTEMPTS} tries no thread was found where it may be borrowed: waiting, or in Python code"
    return inject_errors.NoSafePoint(target.pid, why)

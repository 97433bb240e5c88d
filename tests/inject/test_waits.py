"""A thread that was borrowed while it waited sees neither EINTR nor an early return."""

from __future__ import annotations

import ctypes
import signal

import pytest

from recorder.inject import check_target
from recorder.inject.borrow import Borrowed
from recorder.inject.parked import RESTART_SYSCALL, WAITS, call_of, is_parked, look
from recorder.inject.quiet import in_own_thread
from tests.inject.conftest import Running, Start

CALLS = [
    "poll",
    "ppoll",
    "select",
    "pselect6",
    "nanosleep",
    "clock_nanosleep",
    "clock_nanosleep until",
    "futex",
    "futex until",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "semtimedop",
    "rt_sigtimedwait",
    "recvfrom",
    "accept",
]
_TGKILL = 234


def parked_thread(program: Running) -> int:
    """The id of the program's waiting thread, once it waits."""
    tid = program.counter(2)
    program.wait_until(lambda: any(t.tid == tid and t.is_parked for t in look(program.pid)))
    return tid


def borrow(program: Running, text: bytes, signals: tuple[int, ...] = ()) -> int | None:
    """Borrow the waiting thread; the call that it was found in, None if it had just left."""
    target, tid = check_target(program.pid), parked_thread(program)

    def work() -> int | None:
        with Borrowed(target, tid) as thread:
            for number in signals:
                ctypes.CDLL(None).syscall(_TGKILL, program.pid, tid, number)
            if not is_parked(thread.registers):
                return None
            thread.start(text, pending=False)
            return call_of(thread.registers)

    return in_own_thread(work)


@pytest.mark.parametrize("name", CALLS)
def test_a_wait_goes_on_until_its_time_is_over(start: Start, name: str) -> None:
    program = start("wait", name)
    found = set()
    for _ in range(12):
        call = borrow(program, b"pass")
        if call is not None:
            found.add(WAITS[call])
    program.moves(1)
    assert program.counter(15) == 0, program.complaints()
    assert name.split(maxsplit=1)[0] in found
    assert found <= {name.split(maxsplit=1)[0], WAITS[RESTART_SYSCALL]}


@pytest.mark.parametrize("name", ["epoll_wait", "nanosleep", "poll", "recvfrom"])
def test_a_wait_that_is_stopped_and_not_used_goes_on_too(start: Start, name: str) -> None:
    program = start("wait", name)
    target = check_target(program.pid)

    def stop_only(tid: int) -> None:
        with Borrowed(target, tid):
            pass

    for _ in range(12):
        tid = parked_thread(program)
        in_own_thread(lambda tid=tid: stop_only(tid))  # type: ignore[misc]
    program.moves(1)
    assert program.counter(15) == 0, program.complaints()


def test_a_signal_of_the_program_s_own_still_ends_a_wait(start: Start) -> None:
    program = start("interruptible")
    for sent in range(1, 6):
        assert borrow(program, b"pass", (signal.SIGUSR1,)) is not None
        program.wait_until(lambda sent=sent: program.counter(1) == sent)  # type: ignore[misc]
    assert borrow(program, b"pass") is not None
    assert program.counter(1) == 5
    assert program.counter(15) == 0, program.complaints()


def test_a_thread_whose_tracer_dies_puts_itself_back(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving the stub in its wait, as a killed tool does: the thread restores itself when that is over."""
    monkeypatch.setattr(Borrowed, "_release", lambda self: None)
    for name in ("nanosleep", "epoll_wait", "futex until"):
        program = start("wait", name)
        assert borrow(program, b"import builtins\nbuiltins.ran = 1\n") is not None
        program.moves(1)
        assert program.counter(15) == 0, program.complaints()

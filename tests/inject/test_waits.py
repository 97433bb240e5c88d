"""A thread that was borrowed while it waited sees neither EINTR nor an early return."""

from __future__ import annotations

import ctypes
import signal

import pytest

from fdtrace.recorder.inject import check_target, run_in_process
from fdtrace.recorder.inject.borrowed_thread import BorrowedThread
from fdtrace.recorder.inject.memory import ProcessMemory
from fdtrace.recorder.inject.no_interruptions import in_own_thread
from fdtrace.recorder.inject.thread_choice import RESTART_SYSCALL, WAITS, call_of, is_parked, sorted_threads
from tests.inject.conftest import ForwardUnderWay, Start

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


def parked_thread(program: ForwardUnderWay) -> int:
    """The id of the program's waiting thread, once it waits."""
    tid = program.counter(2)
    program.wait_until(lambda: any(t.tid == tid and t.is_parked for t in sorted_threads(program.pid)))
    return tid


def borrow(program: ForwardUnderWay, text: bytes, signals: tuple[int, ...] = ()) -> int | None:
    """Borrow the waiting thread; the call that it was found in, None if it had just left."""
    target, tid = check_target(program.pid), parked_thread(program)

    def work() -> int | None:
        with BorrowedThread(target, tid) as thread:
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
    # On a busy machine the thread may be met on its way: there it waits for the interpreter's lock.
    assert found <= {name.split(maxsplit=1)[0], WAITS[RESTART_SYSCALL], "futex"}


def test_a_thread_that_waits_for_a_mutex_is_not_borrowed(start: Start) -> None:
    """It may hold others: in glibc's fork() the locks of the allocator, without which no thread can start."""
    program = start("wait", "mutex")
    tid = program.counter(2)
    program.wait_until(lambda: any(t.tid == tid and t.call == 202 for t in sorted_threads(program.pid)))
    seen = [thread for _ in range(50) for thread in sorted_threads(program.pid) if thread.tid == tid]
    assert any(thread.call == 202 for thread in seen)
    assert not any(thread.is_parked for thread in seen)
    assert run_in_process(program.pid, "result = 1").tid == program.pid


@pytest.mark.parametrize("name", ["epoll_wait", "nanosleep", "poll", "recvfrom"])
def test_a_wait_that_is_stopped_and_not_used_goes_on_too(start: Start, name: str) -> None:
    program = start("wait", name)
    target = check_target(program.pid)

    def stop_only(tid: int) -> None:
        with BorrowedThread(target, tid):
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


class Killed(BaseException):
    """Stands for SIGKILL at one exact point: nothing of ours runs after it but the kernel's detaching."""


@pytest.fixture(params=["before the call", "in the call", "after the call", "before the stub", "in the stub"])
def dies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tracer end at this stage of borrowing, whatever the thread is doing then."""
    stages = {"before the call": 0, "in the call": 1, "after the call": 2}
    step, write = BorrowedThread._step_to_call, ProcessMemory.write

    def some_steps(self: BorrowedThread) -> None:
        for _ in range(stages[request.param]):
            step(self)
        raise Killed

    def write_no_page(self: ProcessMemory, address: int, data: bytes) -> None:
        if address % 4096 == 0:
            raise Killed
        write(self, address, data)

    def die(*arguments: object, **options: object) -> None:
        raise Killed

    monkeypatch.setattr(BorrowedThread, "_release", lambda self: None)
    if request.param in stages:
        monkeypatch.setattr(BorrowedThread, "_step_to_call", some_steps)
    elif request.param == "before the stub":
        monkeypatch.setattr(ProcessMemory, "write", write_no_page)
    else:
        monkeypatch.setattr(BorrowedThread, "_check_result", die)


@pytest.mark.parametrize("name", ["nanosleep", "epoll_wait", "futex until"])
@pytest.mark.usefixtures("dies")
def test_a_waiting_thread_whose_tracer_is_killed_puts_itself_back(start: Start, name: str) -> None:
    program = start("wait", name)
    for _ in range(3):
        with pytest.raises(Killed):
            borrow(program, b"pass")
        program.moves(1, by=2)
    assert program.counter(15) == 0, program.complaints()


@pytest.mark.usefixtures("dies")
def test_a_computing_thread_whose_tracer_is_killed_puts_itself_back(start: Start) -> None:
    program = start("spinning")
    target = check_target(program.pid)

    def work() -> None:
        with BorrowedThread(target, program.pid) as thread:
            thread.start(b"pass", pending=True)

    for _ in range(5):
        with pytest.raises(Killed):
            in_own_thread(work)
        program.moves(1)
    assert program.counter(15) == 0, program.complaints()

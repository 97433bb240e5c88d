"""Code runs in a process in whatever state it is, and its answer comes back."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from fdtrace.recorder.inject import run_in_process
from fdtrace.recorder.inject.inject_errors import AgentFailed, GilHeld
from tests.inject.conftest import PYTHONS, Start

pythons = pytest.mark.parametrize("python", PYTHONS, ids=lambda path: Path(path).resolve().name)
BLOCKED = ["sleep", "lock", "lock with timeout", "epoll", "poll", "select", "recv", "read", "C code"]


@pythons
@pytest.mark.parametrize("how", BLOCKED)
def test_runs_in_a_process_whose_only_thread_is_blocked(start: Start, python: str, how: str) -> None:
    program = start("blocked", how, python=python)
    outcome = run_in_process(program.pid, "import os\nresult = [os.getpid(), 'ä', None]")
    assert outcome.value == [program.pid, "ä", None]
    assert outcome.method == "ptrace"
    assert outcome.tid == program.pid
    assert 0 < outcome.held_us < outcome.total_us
    assert program.process.poll() is None


@pythons
def test_runs_in_a_process_that_never_waits(start: Start, python: str) -> None:
    program = start("spinning", python=python)
    outcome = run_in_process(program.pid, "import os\nresult = os.getpid()", timeout=300)
    assert outcome.value == program.pid
    assert outcome.method == "pending"
    program.moves(1)


@pythons
def test_runs_beside_the_program_and_leaves_nothing_behind(start: Start, python: str) -> None:
    program = start("blocked", "sleep", python=python)
    source = "import sys, _thread\nresult = [sorted(vars(sys.modules['__main__'])), _thread.get_ident()]"
    first, second = (run_in_process(program.pid, source).value for _ in range(2))
    assert first[0] == second[0]
    assert not [name for name in first[0] if "fdtrace" in name or name == "run"]
    program.wait_until(lambda: os.listdir(f"/proc/{program.pid}/task") == [str(program.pid)])


def test_the_namespace_is_fresh_each_time(start: Start) -> None:
    program = start("blocked", "sleep")
    assert run_in_process(program.pid, "kept = 1\nresult = __name__").value == "_fdtrace_boot"
    assert run_in_process(program.pid, "result = 'kept' in globals()").value is False


def test_no_result_is_none_and_a_large_source_and_result_pass(start: Start) -> None:
    program = start("blocked", "sleep")
    assert run_in_process(program.pid, "pass").value is None
    text = "x" * 3_000_000
    assert run_in_process(program.pid, f"result = {text!r}").value == text


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("result = (", "SyntaxError"),
        ("result = object()", "TypeError"),
        ("import os\nclass Bad(Exception):\n def __str__(self): raise OSError\nraise Bad", "Bad"),
    ],
)
def test_what_the_source_raises_is_told_and_harms_nothing(start: Start, source: str, says: str) -> None:
    program = start("blocked", "sleep")
    with pytest.raises(AgentFailed) as caught:
        run_in_process(program.pid, source)
    assert says in caught.value.why
    assert run_in_process(program.pid, "result = 1").value == 1
    assert program.complaints() == ""


def test_a_source_that_does_not_come_back_is_given_up(start: Start) -> None:
    program = start("blocked", "sleep")
    with pytest.raises(AgentFailed, match="no answer within"):
        run_in_process(program.pid, "import time\ntime.sleep(600)", timeout=2)
    assert run_in_process(program.pid, "result = 1").value == 1


@pythons
def test_a_c_call_that_holds_the_gil_is_told_and_nothing_is_installed(start: Start, python: str) -> None:
    program = start("holding_the_gil", python=python)
    with pytest.raises(GilHeld) as caught:
        run_in_process(program.pid, "import builtins\nbuiltins.installed = True", timeout=0.5)
    assert caught.value.code == "gil_held"
    with open(f"/proc/{program.pid}/fd/{program.counter(1)}", "wb") as pipe:
        pipe.write(b"x")
    program.moves(2)
    program.wait_until(lambda: os.listdir(f"/proc/{program.pid}/task") == [str(program.pid)])
    assert (
        run_in_process(program.pid, "import builtins\nresult = hasattr(builtins, 'installed')").value is False
    )


def test_the_new_thread_takes_no_signal_of_the_program_s_but_those_of_the_c_library(start: Start) -> None:
    program = start("blocked", "sleep")
    source = "import signal\nresult = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    blocked = run_in_process(program.pid, source).value
    assert {2, 10, 15, 17} <= set(blocked)
    assert not {5, 11, 32, 33, 34} & set(blocked)


def test_a_tool_with_busy_threads_can_attach(start: Start) -> None:
    program = start("blocked", "sleep")
    done = threading.Event()

    def spin() -> None:
        while not done.is_set():
            sum(range(1000))

    spinner = threading.Thread(target=spin)
    spinner.start()
    try:
        for _ in range(20):
            assert run_in_process(program.pid, "result = 1").value == 1
    finally:
        done.set()
        spinner.join()

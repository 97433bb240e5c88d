"""Many injections into a program whose threads do everything at once: it must not notice.

FDTRACE_TEST_INJECTIONS says how many.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from fdtrace.recorder.inject import run_in_process
from tests.inject.conftest import PYTHONS, Start

NUM_INJECTIONS = int(os.environ.get("FDTRACE_TEST_INJECTIONS", "60"))
THREADS = range(1, 10)
SOURCE = "import os\nresult = os.getpid()"
TOOL = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where this was started in a shell's background
from fdtrace.recorder.inject import run_in_process
from fdtrace.recorder.errors import TargetError
while True:
    try:
        run_in_process(int(sys.argv[1]), {SOURCE!r})
    except TargetError:
        pass
    print(flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(300 + NUM_INJECTIONS)
@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: path.replace("/", "_"))
def test_a_tortured_program_does_not_notice(start: Start, python: str) -> None:
    program = start("tortured", python=python)
    program.moves(*THREADS)
    for done in range(NUM_INJECTIONS // len(PYTHONS)):
        assert run_in_process(program.pid, SOURCE, timeout=300).value == program.pid
        if done % 20 == 0:
            program.moves(*THREADS, by=1)
    program.moves(*THREADS)
    assert program.counter(15) == 0, program.complaints()
    assert program.complaints() == ""


def ended_by(tool: subprocess.Popen[bytes], ending: signal.Signals) -> None:
    """Send a signal until the tool has ended: Python drops a KeyboardInterrupt that it raises in a finalizer."""
    for _ in range(10):
        tool.send_signal(ending)
        try:
            tool.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            continue
        return
    tool.kill()
    pytest.fail(f"the tool does not end by {ending.name}")


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_a_tool_that_is_ended_in_the_middle_harms_nothing(start: Start, ending: signal.Signals) -> None:
    program = start("wait", "epoll_wait")
    chance = random.Random(int(ending))
    for _ in range(10 if ending == signal.SIGKILL else 4):
        tool = subprocess.Popen(
            [sys.executable, "-c", TOOL, str(program.pid)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert tool.stdout is not None
        tool.stdout.readline()
        time.sleep(chance.uniform(0, 0.02))
        ended_by(tool, ending)
        assert tool.returncode in (-ending, 1)
        program.moves(1, by=1)
    assert run_in_process(program.pid, SOURCE).value == program.pid
    assert program.counter(15) == 0, program.complaints()

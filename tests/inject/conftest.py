"""Real processes to attach to."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fdtrace.recorder.inject import inject_errors, run_in_process

PROGRAM = Path(__file__).with_name("program.py")
PYTHONS = [sys.executable, *filter(None, os.environ.get("FDTRACE_TEST_PYTHONS", "").split(":"))]
"""The interpreter that runs the tests, and others that FDTRACE_TEST_PYTHONS names, separated by colons."""
HANG_S = 900


class ForwardUnderWay:
    """A program of `program.py` under test, and its counters."""

    def __init__(self, process: subprocess.Popen[str], counters: Path) -> None:
        self.process, self._counters = process, counters

    @property
    def pid(self) -> int:
        return self.process.pid

    def counter(self, number: int) -> int:
        return int(struct.unpack_from("<Q", self._counters.read_bytes(), 8 * number)[0])

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait for something that the program does; fail if it dies or hangs."""
        deadline = time.monotonic() + HANG_S
        while not reached():
            assert self.process.poll() is None, f"it died: {self.process.returncode}: {self.complaints()}"
            assert time.monotonic() < deadline, f"it hangs: {self.complaints()}"
            time.sleep(0.005)

    def moves(self, *numbers: int, by: int = 3) -> None:
        """Wait until all these counters have moved on."""
        goals = {number: self.counter(number) + by for number in numbers}
        self.wait_until(lambda: all(self.counter(number) >= goal for number, goal in goals.items()))

    def complaints(self) -> str:
        return self._counters.with_suffix(".log").read_text()


Start = Callable[..., ForwardUnderWay]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `program.py MODE [ARGUMENT]` and wait until it is ready; killed after the test."""
    running: list[ForwardUnderWay] = []

    def start_one(mode: str, *arguments: str, python: str = sys.executable) -> ForwardUnderWay:
        counters = tmp_path / f"counters{len(running)}"
        counters.write_bytes(bytes(128))
        with open(counters.with_suffix(".log"), "w") as log:
            process = subprocess.Popen(
                [python, "-W", "ignore", PROGRAM, mode, counters, *arguments],
                stdin=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        program = ForwardUnderWay(process, counters)
        running.append(program)
        program.wait_until(lambda: program.counter(0) == 1)
        return program

    yield start_one
    for program in running:
        program.process.kill()
        program.process.communicate()


INSTALL = "import builtins\nbuiltins.installed = True"


def refusal(pid: int) -> inject_errors.InjectError:
    with pytest.raises(inject_errors.InjectError) as caught:
        run_in_process(pid, INSTALL, timeout=20)
    error = caught.value
    assert error.code
    assert error.what
    assert error.hint
    assert error.exit_code == 3
    return error


def untouched(program: ForwardUnderWay) -> bool:
    """Whether it still answers, with nothing installed."""
    source = "import builtins\nresult = hasattr(builtins, 'installed')"
    return run_in_process(program.pid, source).value is False

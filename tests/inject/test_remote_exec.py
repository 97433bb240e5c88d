"""The interpreter's own way in (3.14), with our own way as the next. `sys.remote_exec` itself is doubled."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fdtrace.recorder.inject import check_target, injector, run_in_process
from fdtrace.recorder.inject.no_interruptions import in_own_thread
from tests.inject.conftest import Start

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="the target does not tell its version")
real = pytest.mark.skipif(sys.version_info < (3, 14), reason="sys.remote_exec came with 3.14")


@real
def test_the_real_one(start: Start) -> None:
    program = start("spinning")
    outcome = run_in_process(program.pid, "import os\nresult = os.getpid()")
    assert (outcome.method, outcome.value, outcome.held_us) == ("remote_exec", program.pid, 0)


def test_the_script_calls_back_from_a_thread_of_its_own(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = start("blocked", "sleep")
    scripts = []

    def run_script(pid: int, path: str) -> None:
        scripts.append(Path(path))
        assert Path(path).stat().st_mode & 0o777 == 0o600
        target = check_target(pid)
        text = f"exec(open({path!r}).read())\n"
        in_own_thread(lambda: injector._by_ptrace(target, text.encode()))

    monkeypatch.setattr(sys, "remote_exec", run_script, raising=False)
    outcome = run_in_process(program.pid, "import os\nresult = os.getpid()")
    assert (outcome.method, outcome.value, outcome.tid) == ("remote_exec", program.pid, 0)
    assert not scripts[0].exists()


def test_a_target_that_does_not_run_bytecode_is_reached_by_ptrace(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = start("blocked", "sleep")
    monkeypatch.setattr(sys, "remote_exec", lambda pid, path: None, raising=False)
    assert run_in_process(program.pid, "result = 1").method == "ptrace"


def test_a_target_that_refuses_is_reached_by_ptrace(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, path: str) -> None:
        raise RuntimeError("Remote debugging is not enabled")

    program = start("blocked", "sleep")
    monkeypatch.setattr(sys, "remote_exec", refuse, raising=False)
    assert run_in_process(program.pid, "result = 1").method == "ptrace"


def test_another_minor_version_is_not_asked(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    program = start("blocked", "sleep")
    monkeypatch.setattr(sys, "remote_exec", lambda pid, path: asked.append(pid), raising=False)
    monkeypatch.setattr(sys, "version_info", (3, sys.version_info[1] + 1, 0))
    assert run_in_process(program.pid, "result = 1").method == "ptrace"
    assert asked == []

"""A server of two engines: attached to by what started both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from fdtrace.recorder.trace.trace import open_trace
from tests.stands import Stand, logged, rows_of
from tests.vllm.conftest import agree

PARENT = """
import subprocess, sys
options = ["--inline", "--requests", "100000", "--sleep", "0.005"]
engines = [subprocess.Popen([sys.executable, sys.argv[1], "--log", log, *options]) for log in sys.argv[2:]]
for engine in engines:
    engine.wait()
"""


def test_two_engines_under_one_parent_are_both_recorded(stand: Stand) -> None:
    logs = [stand.directory / name for name in ("a.log", "b.log")]
    command = [sys.executable, "-c", PARENT, str(stand.script), *map(str, logs)]
    parent = subprocess.Popen(command, env=stand.environment, start_new_session=True)
    try:
        while not all(log.exists() and log.stat().st_size for log in logs):
            time.sleep(0.02)
        done = stand.fdtrace("attach", parent.pid, "-o", stand.trace, "--duration", "2")
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("attached (ptrace") == 2
    written = [logged(log) for log in logs]
    with open_trace(stand.trace) as trace:
        assert len(trace.engines()) == 2
        for engine in trace.engines():
            rows = rows_of(trace, engine["engine_id"])
            assert rows
            assert any(
                agree(rows, lines[at : at + len(rows)]) for lines in written for at in range(len(lines))
            )

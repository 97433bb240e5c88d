"""Other users for the tests that need two: root runs code as one, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.recorder import helpers

ALICE = 200_000 + 2 * (os.getpid() % 50_000)
BOB = ALICE + 1
"""Ids of nobody on this machine, and of no test beside this one: no entry in a passwd file is needed."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")

_BECOME = """
import ctypes, json, os, sys, time
from pathlib import Path
from fdtrace import cli
from fdtrace.commands import attach as _attach, detach, recover, status
from fdtrace.progress import Progress
from fdtrace.recorder import agent_delivery, agent_processes, attach_server, leftovers
from fdtrace.recorder.agent import mailbox, ring, wire
from fdtrace.recorder.collector.process import recover as _recover
from fdtrace.recorder.collector import saved_state
from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.inject import run_in_process
from fdtrace.recorder.session import Session
from fdtrace.recorder.supervise import Supervisor
import fdtrace.watch, duckdb, encodings.idna, pwd
agent_delivery.prepare()
user = int(sys.argv[1])
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE, lost with the change of user
os.environ.pop("FDTRACE_DIR", None)
os.chdir("/")
"""


def run_as(user: int, code: str, *arguments: object) -> Any:
    """Run `code` as `user`; what it prints last, as JSON. `sys.argv[2:]` are the arguments.

    What it needs of fdtrace is imported before: Python and fdtrace may lie where that user cannot read.
    """
    command = [sys.executable, "-c", _BECOME + code, str(user), *map(str, arguments)]
    done = subprocess.run(command, cwd=helpers.ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if lines else None


def their_python() -> str:
    """A Python that other users may run, for engines; skips the test where there is none."""
    candidates = [Path(sys.executable).resolve(), Path("/usr/bin/python3")]
    found = next((path for path in candidates if path.exists() and not str(path).startswith("/root")), None)
    if found is None or not helpers.ENGINE.stat().st_mode & 0o004:
        pytest.skip("no Python or no engine that another user may run")
    return str(found)


def start_engine_of(user: int, *options: Any, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A played engine of another user, ready; ended after the test."""
    process = subprocess.Popen(
        [their_python(), str(helpers.ENGINE), "--sleep", "0.002", *map(str, options)],
        user=user, group=user, extra_groups=[], cwd="/", env=env, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    helpers.started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready")
    return process

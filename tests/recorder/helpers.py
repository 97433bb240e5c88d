"""What the recorder's tests share: played engines, recordings of them, and what both say of each step."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from fdtrace.cli import main
from fdtrace.recorder.agent_delivery import AGENT
from fdtrace.recorder.inject.proc import read_stat
from fdtrace.recorder.session import Session
from fdtrace.recorder.supervise import Supervisor

ENGINE = Path(__file__).parent / "played" / "engine.py"
ROOT = Path(__file__).parents[2]

Rows = dict[int, list[list[Any]]]

started: list[subprocess.Popen[str]] = []
"""The engines of the current test."""


def armed_environment(session: Session | None = None, **more: str) -> dict[str, str]:
    """The environment of a process that is armed as `fdtrace record` arms it."""
    environment = dict(os.environ, FDTRACE="1", PYTHONPATH=str(AGENT / "site"), **more)
    if session is not None:
        environment["FDTRACE_SESSION"] = json.dumps(session.for_agent())
    return environment


def start_engine(
    *options: Any, env: dict[str, str] | None = None, python: str = sys.executable
) -> subprocess.Popen[str]:
    """A played engine, ready."""
    process = subprocess.Popen(
        [python, str(ENGINE), *map(str, options)], env=env, stdout=subprocess.PIPE, text=True
    )
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready")
    return process


def stop_engine(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Ask it to end; what it said of itself."""
    process.terminate()
    out, _ = process.communicate(timeout=900)
    said: dict[str, Any] = json.loads(out)
    return said


def logged(path: Path) -> Rows:
    """The whole lines of an engine's log: rows by step."""
    lines = path.read_text().split("\n")[:-1]
    steps = [json.loads(line) for line in lines]
    return {step["step"]: sorted(step["rows"]) for step in steps}


def num_logged(path: Path) -> int:
    """How many whole lines an engine's log has."""
    return path.read_bytes().count(b"\n")


def recorded(path: Path, engine_id: int = 0) -> Rows:
    """The same from a trace."""
    with duckdb.connect(str(path), read_only=True) as db:
        steps = db.execute("SELECT step FROM step WHERE engine_id = $1", [engine_id]).fetchall()
        found = db.execute(
            "SELECT step, request_id, kind, num_tokens, num_computed_tokens, num_blocks "
            "FROM step_request JOIN request USING (engine_id, request) WHERE engine_id = $1",
            [engine_id],
        ).fetchall()
    assert len(steps) == len(set(steps)), "a step is in the trace twice"
    rows: Rows = {step: [] for (step,) in steps}
    for step, *row in found:
        rows[step].append(row)
    return {step: sorted(rows[step]) for step in sorted(rows)}


def query(path: Path, text: str) -> list[tuple[Any, ...]]:
    """The rows of a query on a trace, by a client of its own."""
    with duckdb.connect(str(path), read_only=True) as db:
        return db.execute(text).fetchall()


def has_steps(path: Path) -> Callable[[], bool]:
    """Whether a recording in progress shows a step. It is opened once for each state that is published."""
    seen: list[tuple[int, int]] = []

    def shown() -> bool:
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if (state := (status.st_ino, status.st_mtime_ns)) not in seen:
                seen.append(state)
                return bool(query(path, "FROM step LIMIT 1"))
        return False

    return shown


SLEEPS = {"23", "230", "270"}
"""The numbers of the system calls in which `time.sleep` waits on x86-64: select, clock_nanosleep, pselect6."""


def cut_while_asleep(engine: subprocess.Popen[str], path: Path, length: int) -> None:
    """Cut a file that an engine writes, while the engine sleeps between two steps.

    The agent checks a ring's length at most once a millisecond. A cut within that time ends the engine: this is a limit
    that docs/security.md names, and not what these tests are about.
    """
    while True:
        os.kill(engine.pid, signal.SIGSTOP)
        try:
            while read_stat(f"/proc/{engine.pid}/stat").state != "T":
                time.sleep(0.0002)
            if Path(f"/proc/{engine.pid}/syscall").read_text().split()[0] in SLEEPS:
                os.truncate(path, length)
                time.sleep(0.002)
                return
        finally:
            os.kill(engine.pid, signal.SIGCONT)
        time.sleep(0.0007)


def fdtrace_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command `fdtrace` in this process: the start of another costs more than most commands."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return subprocess.CompletedProcess(list(map(str, arguments)), code, out.getvalue(), err.getvalue())


def pump(supervisor: Supervisor, until: Callable[[], bool], seconds: float = 900.0) -> None:
    """Keep the supervisor going until something holds."""
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it did not happen in time"
        supervisor.poll(0.02)


def finish(supervisor: Supervisor, reason: str | None = None) -> None:
    """Have the final file made, once the engines have ended where no reason is given, and wait for it."""
    if reason is None:
        pump(supervisor, lambda: supervisor.ended is not None)
    supervisor.end(reason or str(supervisor.ended))
    pump(supervisor, lambda: supervisor.finished is not None)


def record_played(steps: int, path: Path) -> None:
    """Record a played engine for so many steps, to its end."""
    with collected(path) as (session, supervisor):
        start_engine("--steps", steps, env=armed_environment(session)).communicate(timeout=900)
        finish(supervisor)


@contextmanager
def collected(path: Path, **options: Any) -> Iterator[tuple[Session, Supervisor]]:
    """A session whose collector runs; nothing is left of it afterwards."""
    session = Session.create(path, **options)
    supervisor = Supervisor(session)
    try:
        yield session, supervisor
    finally:
        if supervisor.finished is None:
            supervisor.cancel()
        session.remove_rings()

"""Gets the agent into every Python process of a server, and out again."""

from __future__ import annotations

import base64
import contextlib
import functools
import marshal
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recorder import control
from recorder.agent import load
from recorder.agent.adapters import ADAPTERS
from recorder.errors import FdtraceError, TargetError
from recorder.inject import check_target, process_tree, run_in_process
from recorder.inject.errors import Ended, NoProcess, NotAProcess, NotCPython, Zombie
from recorder.session import Session

AGENT = Path(load.__file__).parent


@dataclass(frozen=True)
class Reached:
    """One process that records or will: `way` is `armed`, `remote_exec`, `ptrace` or `pending`.

    `waiting`: it is armed, but its engine was idle; it begins with its next step. `held_us`: the longest time that a
    thread of it was held.
    """

    pid: int
    way: str
    waiting: bool
    status: dict[str, Any]
    held_us: int = 0


@functools.cache
def _agent_text() -> str:
    """Source that defines `load`, and the agent as source and as code objects of our own Python's version."""
    loader = (AGENT / "load.py").read_text(encoding="utf-8")
    sources = load.read_sources(str(AGENT))
    compiled = {
        name: marshal.dumps(compile(text, load.file_name(name), "exec")) for name, text in sources.items()
    }
    known = sorted({hook.module for adapter in ADAPTERS for hook in adapter(None).hooks})  # type: ignore[arg-type]
    return (
        f"{loader}\nSOURCES = lambda: unpacked({_packed(sources)!r})\n"
        f"COMPILED = unpacked({_packed(compiled)!r}) if magic() == {load.magic()!r} else None\n"
        f"KNOWN = {known!r}\n"
    )


def _packed(values: dict[str, Any]) -> str:
    """Short text for `load.unpacked`: the target's threads wait while it is parsed."""
    return base64.b64encode(zlib.compress(marshal.dumps(values, 2))).decode()


def agent_source(call: str) -> str:
    """Source that loads the agent from itself, for a process that may not read our files, and makes `call`.

    Where no module of an engine is loaded it does nothing, and says so as `arm.inject` would.
    """
    return (
        f"{_agent_text()}"
        f"if NAME in sys.modules or not sys.modules.keys().isdisjoint(KNOWN):\n"
        f"    result = load({{}} if COMPILED else SOURCES(), COMPILED).{call}\n"
        f"else:\n"
        f"    result = {{'hooks': [], 'problem': ''}}\n"
        f"result['modules'] = engine_modules()\n"
    )


def attach(pid: int, session: Session) -> list[Reached]:
    """Reach every process under `pid` that has an engine's scheduler or worker loaded, the deepest first: what an
    engine says of its running requests when its recording begins is then newer than what its workers began with.

    TargetError where none has, or none can be reached; then nothing was changed.
    """
    check_pid(pid)
    with _preferred():
        return _attach(pid, session)


@contextlib.contextmanager
def _preferred() -> Iterator[None]:
    """Run before others, where we are allowed: a loaded server would make it take seconds, and its threads wait."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice - 10)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, nice)


def _attach(pid: int, session: Session) -> list[Reached]:
    reached: list[Reached] = []
    problems: list[tuple[int, FdtraceError]] = []
    modules: set[str] = set()
    for process in reversed(process_tree(pid)):
        if process.is_python is False and process.depth:
            continue
        try:
            found = _reach(process.pid, session)
        except (Ended, NotCPython) as error:
            if process.depth == 0:
                problems.append((process.pid, error))
            continue
        except FdtraceError as error:
            problems.append((process.pid, error))
            continue
        modules.update(found.status.get("modules", ()))
        if found.status.get("hooks") or found.waiting:
            reached.append(found)
    problems.reverse()
    if not reached:
        raise _nothing_reached(pid, problems, modules)
    session.notes += [f"process {number} is not recorded: {error.what}" for number, error in problems]
    return reached


def check_pid(pid: int) -> None:
    """A pid that is no process is said at once; what else stands in the way may not concern its children."""
    try:
        check_target(pid)
    except (NoProcess, NotAProcess, Zombie):
        raise
    except FdtraceError:
        return


def _nothing_reached(pid: int, problems: list[tuple[int, FdtraceError]], modules: set[str]) -> FdtraceError:
    if problems:
        return problems[0][1]
    seen = ", ".join(sorted(modules)[:8]) or "none of a known engine"
    return TargetError(
        f"no scheduler was found in process {pid} or below it",
        why=f"modules seen: {seen}",
        hint="give the pid of the server (or of its engine process); start a new one with `fdtrace record -- CMD`",
    )


def _reach(pid: int, session: Session) -> Reached:
    agent = control.find_agent(pid)
    if agent is None:
        return _inject(pid, session)
    if agent.recording:
        raise TargetError(
            f"process {pid} is already recorded",
            why=f"to {agent.status.get('output')}",
            hint=f"`fdtrace detach {pid}` ends that recording",
        )
    order = {"op": "start", "session": session.for_agent()}
    status = control.command(agent, order)
    if status is not None and status.get("problem"):
        raise TargetError(f"the agent in process {pid} could not begin", why=status["problem"])
    return Reached(pid, "armed", status is None, status or agent.status)


def _inject(pid: int, session: Session) -> Reached:
    with contextlib.suppress(OSError):  # what stands in the way, `run_in_process` tells
        _check_namespace(pid)
    result = run_in_process(pid, agent_source(f"inject({session.for_agent()!r})"))
    status: dict[str, Any] = result.value
    if status.get("problem"):
        raise TargetError(f"the agent in process {pid} could not begin", why=status["problem"])
    return Reached(pid, result.way, False, status, result.held_us)


def _check_namespace(pid: int) -> None:
    """Our rings must be where the process finds them."""
    ours, theirs = (os.stat(f"/proc/{who}/ns/mnt").st_ino for who in ("self", pid))
    if ours != theirs:
        raise TargetError(
            f"process {pid} runs in a container",
            why="its /dev/shm is not this one (another mount namespace)",
            hint="run fdtrace inside that container, or start the server with `fdtrace record` there",
        )


def detach(session_id: str, reason: str = "detach") -> list[str]:
    """Stop every agent that records to a session and give the classes back; what could not be, in words.

    An injected agent whose engine is idle is made to obey by a second injection; an armed one obeys at its next call.
    """
    left = []
    for agent in control.agents():
        if agent.recording != session_id:
            continue
        status = control.command(agent, {"op": "stop", "reason": reason})
        if status is None and not agent.status.get("armed"):
            status = _obey_now(agent.pid)
        if status is None:
            left.append(f"process {agent.pid} is idle: it stops, and gives its hooks back, at its next call")
        else:
            left += status.get("notes", [])
    return left


def _obey_now(pid: int) -> dict[str, Any] | None:
    source = f"import sys\nresult = sys.modules[{load.NAME!r}].arm.attend()\n"
    try:
        status: dict[str, Any] = run_in_process(pid, source).value
    except FdtraceError:
        return None
    return status

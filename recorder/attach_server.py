"""Gets the agent into every Python process of a server, and out again."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

from fdtrace.recorder import agent_processes, delivery
from fdtrace.recorder.agent import load
from fdtrace.recorder.errors import FdtraceError, TargetError
from fdtrace.recorder.inject import (
    check_process,
    enter,
    first_in_line,
    is_python,
    process_tree,
    rest,
    run_in_process,
)
from fdtrace.recorder.inject.inject_errors import InjectError, NotCPython, TargetEnded
from fdtrace.recorder.session import Session


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


def attach(pid: int, session: Session, *, force: bool = False) -> list[Reached]:
    """Reach every process under `pid` that has an engine's scheduler or worker loaded, the deepest first: what an
    engine says of its running requests when its recording begins is then newer than what its workers began with.

    TargetError where none has, or none can be reached; then nothing was changed. `force`: also enter processes whose
    system calls a seccomp filter looks at, which may kill them.
    """
    check_process(pid)
    delivery.prepare()
    with first_in_line():
        return _attach(pid, session, force)


def _attach(pid: int, session: Session, force: bool) -> list[Reached]:
    reached: list[Reached] = []
    problems: list[tuple[int, FdtraceError]] = []
    modules: set[str] = set()
    for process in reversed(process_tree(pid)):
        rest()
        try:
            found = _reach(process.pid, session, force)
        except (TargetEnded, NotCPython) as error:
            if process.depth == 0:
                problems.append((process.pid, error))
            continue
        except FdtraceError as error:
            if process.depth == 0 or is_python(process.pid) is not False:
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


def _nothing_reached(pid: int, problems: list[tuple[int, FdtraceError]], modules: set[str]) -> FdtraceError:
    if problems:
        return problems[0][1]
    seen = ", ".join(sorted(modules)[:8]) or "none of a known engine"
    return TargetError(
        f"no scheduler was found in process {pid} or below it",
        why=f"modules seen: {seen}",
        hint="give the pid of the server (or of its engine process); start a new one with `fdtrace record -- CMD`",
    )


def _reach(pid: int, session: Session, force: bool) -> Reached:
    agent = agent_processes.find_agent(pid)
    if agent is None:
        return _inject(pid, session, force)
    if agent.recording:
        raise _already(pid, agent.status)
    order = {"op": "start", "session": session.for_agent()}
    status = agent_processes.command(agent, order)
    if status is not None and status.get("problem"):
        raise _could_not_begin(pid, status["problem"], session)
    return Reached(pid, "armed", status is None, status or agent.status)


def _could_not_begin(pid: int, problem: str, session: Session) -> TargetError:
    return TargetError(
        f"the agent in process {pid} could not begin to record",
        why=problem,
        hint=f"it made its files in {session.dir} and {session.mailboxes}: is there room, and are both its user's own? "
        "The process goes on as before",
    )


def _already(pid: int, status: dict[str, Any]) -> TargetError:
    return TargetError(
        f"process {pid} is already recorded",
        why=f"to {status.get('output')}",
        hint=f"`fdtrace detach {pid}` ends that recording",
    )


def _inject(pid: int, session: Session, force: bool) -> Reached:
    with contextlib.suppress(OSError):  # what stands in the way, `run_in_process` tells
        _check_namespace(pid)
    try:
        with enter(pid, force=force) as (entry, there):
            status = delivery.deliver(there, session)
    except InjectError as error:
        if _is_armed(pid):
            error.why += f"; it is armed, but has no mailbox in {session.mailboxes}: it has made no call yet, or could "
            error.why += "make none there (is there room, and is the directory its user's alone?)"
        raise
    if status.get("already"):
        raise _already(pid, status)
    if status.get("problem"):
        raise _could_not_begin(pid, status["problem"], session)
    return Reached(pid, entry.way, False, status, entry.held_us)


def _is_armed(pid: int) -> bool:
    """Whether it was started with FDTRACE set, as far as we may see."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return any(entry.startswith(b"FDTRACE=") for entry in file.read().split(b"\0"))
    except OSError:
        return False


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
    agents = [agent for agent in agent_processes.agents() if agent.recording == session_id]
    answers = agent_processes.commands(agents, {"op": "stop", "reason": reason})
    for agent, answer in zip(agents, answers, strict=True):
        idle = answer is None and not agent.status.get("armed")
        status, why = _obey_now(agent.pid) if idle else (answer, "")
        if status is None:
            left.append(
                f"process {agent.pid} is idle: it stops, and gives its hooks back, at its next call{why}"
            )
        else:
            left += status.get("notes", [])
    return left


def _obey_now(pid: int) -> tuple[dict[str, Any] | None, str]:
    """The agent's status, or None and why its process could not be entered."""
    source = f"import sys\nresult = sys.modules[{load.NAME!r}].arm.attend()\n"
    try:
        # It was entered before: whatever filter it is under has let that pass.
        status: dict[str, Any] = run_in_process(pid, source, force=True).value
    except FdtraceError as error:
        return None, f" ({error.what})"
    return status, ""

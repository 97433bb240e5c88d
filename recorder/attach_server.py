"""Brings the agent into every Python process of a server, and takes it out again."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

from fdtrace.recorder import agent_delivery, agent_processes
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
class AttachedProcess:
    """A process that records or will record. `method` is `armed`, `remote_exec`, `ptrace` or `pending`.

    `waiting`: the process is armed but its engine was idle, so it begins with its next step. `held_us`: the longest
    time for which one of its threads was held.
    """

    pid: int
    method: str
    waiting: bool
    status: dict[str, Any]
    held_us: int = 0


def attach(pid: int, session: Session, *, force: bool = False) -> list[AttachedProcess]:
    """Reach every process of the tree under `pid` that has loaded an engine's scheduler or worker.

    The deepest processes come first. So when the engine reports its running requests, its workers record already.

    Args:
        pid: the server.
        session: the recording.
        force: also enter processes whose system calls a seccomp filter checks. The filter may kill them.

    Raises:
        TargetError: no process has an engine, or none can be reached. Then nothing was changed.
    """
    check_process(pid)
    agent_delivery.prepare()
    with first_in_line():
        return _attach(pid, session, force)


def _attach(pid: int, session: Session, force: bool) -> list[AttachedProcess]:
    reached: list[AttachedProcess] = []
    problems: list[tuple[int, FdtraceError]] = []
    modules: set[str] = set()
    for process in reversed(process_tree(pid)):
        rest()
        try:
            outcome = _reach(process.pid, session, force)
        except (TargetEnded, NotCPython) as error:
            if process.depth == 0:
                problems.append((process.pid, error))
            continue
        except FdtraceError as error:
            if process.depth == 0 or is_python(process.pid) is not False:
                problems.append((process.pid, error))
            continue
        modules.update(outcome.status.get("modules", ()))
        if outcome.status.get("hooks") or outcome.waiting:
            reached.append(outcome)
    problems.reverse()
    if not reached:
        raise _nothing_reached(pid, problems, modules)
    session.notes += [f"process {number} is not recorded: {error.what}" for number, error in problems]
    return reached


def _nothing_reached(pid: int, problems: list[tuple[int, FdtraceError]], modules: set[str]) -> FdtraceError:
    if problems:
        return problems[0][1]
    module_names = ", ".join(sorted(modules)[:8]) or "none of a known engine"
    return TargetError(
        f"no scheduler was found in process {pid} or below it",
        why=f"modules seen: {module_names}",
        hint="give the pid of the server (or of its engine process); start a new one with `fdtrace record -- CMD`",
    )


def _reach(pid: int, session: Session, force: bool) -> AttachedProcess:
    agent = agent_processes.find_agent(pid)
    if agent is None:
        return _inject(pid, session, force)
    if agent.recording:
        raise _already(pid, agent.status)
    order = {"op": "start", "session": session.for_agent()}
    status = agent_processes.command(agent, order)
    if status is not None and status.get("problem"):
        raise _could_not_begin(pid, status["problem"], session)
    return AttachedProcess(pid, "armed", status is None, status or agent.status)


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


def _inject(pid: int, session: Session, force: bool) -> AttachedProcess:
    with contextlib.suppress(OSError):  # `run_in_process` reports what is wrong
        _check_namespace(pid)
    try:
        with enter(pid, force=force) as (entry, conversation):
            status = agent_delivery.deliver(conversation, session)
    except InjectError as error:
        if _is_armed(pid):
            error.why += f"; it is armed, but has no mailbox in {session.mailboxes}: it has made no call yet, or could "
            error.why += "make none there (is there room, and is the directory its user's alone?)"
        raise
    if status.get("already"):
        raise _already(pid, status)
    if status.get("problem"):
        raise _could_not_begin(pid, status["problem"], session)
    return AttachedProcess(pid, entry.method, False, status, entry.held_us)


def _is_armed(pid: int) -> bool:
    """Whether the process was started with FDTRACE set, as far as we may see."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return any(entry.startswith(b"FDTRACE=") for entry in file.read().split(b"\0"))
    except OSError:
        return False


def _check_namespace(pid: int) -> None:
    """Raise a TargetError if the process cannot find our rings."""
    ours, theirs = (os.stat(f"/proc/{who}/ns/mnt").st_ino for who in ("self", pid))
    if ours != theirs:
        raise TargetError(
            f"process {pid} runs in a container",
            why="its /dev/shm is not this one (another mount namespace)",
            hint="run fdtrace inside that container, or start the server with `fdtrace record` there",
        )


def detach(session_id: str, reason: str = "detach") -> list[str]:
    """Stop every agent that records to a session, and restore the original methods. Returns what failed, in words.

    If its engine is idle, an injected agent is made to obey by a second injection. An armed one obeys at its next call.
    """
    notes = []
    agents = [agent for agent in agent_processes.agents() if agent.recording == session_id]
    answers = agent_processes.commands(agents, {"op": "stop", "reason": reason})
    for agent, answer in zip(agents, answers, strict=True):
        idle = answer is None and not agent.status.get("armed")
        status, why = _obey_now(agent.pid) if idle else (answer, "")
        if status is None:
            notes.append(
                f"process {agent.pid} is idle: it stops, and gives its hooks back, at its next call{why}"
            )
        else:
            notes += status.get("notes", [])
    return notes


def _obey_now(pid: int) -> tuple[dict[str, Any] | None, str]:
    """The agent's status; or None, and why its process could not be entered."""
    source = f"import sys\nresult = sys.modules[{load.NAME!r}].arm.attend()\n"
    try:
        # The process was entered before: its filter allows what we do.
        status: dict[str, Any] = run_in_process(pid, source, force=True).value
    except FdtraceError as error:
        return None, f" ({error.what})"
    return status, ""

"""Talks to agents through their mailboxes: who is armed or recorded on this machine, start, stop."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fdtrace.recorder.agent import mailbox, ring, wire
from fdtrace.recorder.errors import TargetError
from fdtrace.recorder.inject.users import user_of

ANSWER_WAIT = 1.0
"""Seconds to wait for an agent's answer: it comes with the engine's next call, at once under load."""

LOCK_WAIT = 10.0
"""Seconds to wait for another fdtrace that speaks to the same agent: it needs `ANSWER_WAIT` at most."""


@dataclass(frozen=True)
class AgentProcess:
    """An agent in a living process, and what it says of itself."""

    pid: int
    uid: int
    directory: str
    status: dict[str, Any]

    @property
    def recording(self) -> str | None:
        """The id of the recording that it writes to."""
        return self.status.get("recording")


def find_agent(pid: int) -> AgentProcess | None:
    """The agent of a process, if it has one. A mailbox left by a process that is gone is removed.

    TargetError where its mailbox could be another user's, or is another version's.
    """
    try:
        uid = user_of(pid).uid
    except (FileNotFoundError, ProcessLookupError):
        uid = os.geteuid()
    where = mailbox.directory(uid)
    try:
        box = mailbox.Mailbox.open(where, pid, uid)
    except PermissionError as error:
        raise _not_believed(where, uid, error) from None
    except (OSError, ValueError):
        return None
    try:
        owner, start = box.process
        if owner != pid or ring.process_start(pid) != start:
            if uid == os.geteuid():
                box.remove()
            return None
        if box.protocol != wire.PROTOCOL:
            raise TargetError(
                f"the agent in process {pid} is of another version of fdtrace",
                why=f"it speaks protocol {box.protocol}, this one {wire.PROTOCOL}",
                hint="use the fdtrace that it was armed with, or restart the engine",
            )
        return AgentProcess(pid, uid, where, _status(box))
    except (OSError, ValueError):
        return None
    finally:
        box.close()


def _not_believed(where: str, uid: int, error: PermissionError) -> TargetError:
    if error.errno == errno.EACCES and os.geteuid() not in (0, uid):
        return TargetError(
            f"only user {uid} and root may see the agents of user {uid}",
            why=f"{where} is closed to others",
            hint=f"run the same command with `sudo`, or as that user: `sudo -u '#{uid}' fdtrace …`",
        )
    return TargetError(
        f"the agents of user {uid} cannot be spoken to",
        why=f"{error}: fdtrace believes nothing that another user could have written",
        hint=f"have it removed, and find out who made it; or set FDTRACE_DIR, for the server and for fdtrace, to a "
        f"directory of user {uid} alone (mode 0700)",
    )


def _status(box: mailbox.Mailbox) -> dict[str, Any]:
    for _ in range(50):  # it may be writing just now
        try:
            return box.status()
        except ValueError:
            time.sleep(0.001)
    return {}


def agents(problems: list[TargetError] | None = None) -> list[AgentProcess]:
    """Every agent of this user; root sees those of all. `problems`: takes what cannot be spoken to, and why."""
    directories = {mailbox.directory()}
    if os.geteuid() == 0:
        directories.update(glob.glob("/tmp/fdtrace-[0-9]*"))
    names = [name for directory in sorted(directories) for name in _names(directory)]
    pids = sorted({int(name[:-4]) for name in names if name.endswith(".ctl") and name[:-4].isdigit()})
    found = []
    for pid in pids:
        try:
            found.append(find_agent(pid))
        except TargetError as error:
            if problems is not None:
                problems.append(error)
    return [agent for agent in found if agent is not None]


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


@contextmanager
def _alone(agent: AgentProcess) -> Iterator[mailbox.Mailbox | None]:
    """The mailbox, no other controller using it meanwhile; None where it is gone."""
    try:
        box = mailbox.Mailbox.open(agent.directory, agent.pid, agent.uid)
    except (FileNotFoundError, ValueError):
        yield None
        return
    except PermissionError as error:
        raise _not_believed(agent.directory, agent.uid, error) from None
    try:
        _lock(box, agent.pid)
        yield box
    finally:
        box.close()


def _lock(box: mailbox.Mailbox, pid: int) -> None:
    deadline = time.monotonic() + LOCK_WAIT
    while True:
        try:
            fcntl.flock(box.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TargetError(
                    f"the agent in process {pid} is being spoken to by another program",
                    why=f"something has held the lock of {box.path} for {LOCK_WAIT:g} s",
                    hint=f"`fuser {box.path}` names it",
                ) from None
        time.sleep(0.005)


def command(agent: AgentProcess, order: dict[str, Any], wait: float | None = None) -> dict[str, Any] | None:
    """Leave an order for an agent; its status once it obeyed, or None where it did not within `wait` seconds.

    `wait` None: `ANSWER_WAIT`.
    An idle engine makes no calls, so the order waits in the mailbox for its next one.
    """
    return commands([agent], order, wait)[0]


def commands(
    agents: list[AgentProcess], order: dict[str, Any], wait: float | None = None
) -> list[dict[str, Any] | None]:
    """`command` for each of these agents, at once: `wait` is for all of them together."""
    found: list[dict[str, Any] | None] = [None] * len(agents)
    with ExitStack() as stack:
        waiting: dict[int, tuple[mailbox.Mailbox, int]] = {}
        for i, agent in enumerate(agents):
            box = stack.enter_context(_alone(agent))
            with suppress(OSError, ValueError):  # it has left just now
                if box is not None:
                    waiting[i] = box, box.send(order)
        deadline = time.monotonic() + (ANSWER_WAIT if wait is None else wait)
        while waiting:
            is_over = time.monotonic() > deadline
            for i, (box, number) in list(waiting.items()):
                with suppress(OSError, ValueError):  # it was cut short: no answer will come
                    if box.answered(number):
                        found[i] = _status(box)
                        del waiting[i]
                    elif not box.is_there:  # the agent has made itself a new one
                        fresh = stack.enter_context(_alone(agents[i]))
                        if fresh is not None:
                            waiting[i] = fresh, fresh.send(order)
            if is_over:
                break
            time.sleep(0.002)
    return found

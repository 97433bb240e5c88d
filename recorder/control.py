"""Talks to agents through their mailboxes: who is armed or recorded on this machine, start, stop."""

from __future__ import annotations

import fcntl
import glob
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdtrace.recorder.agent import mailbox, ring, wire
from fdtrace.recorder.errors import TargetError

ANSWER_WAIT = 1.0
"""Seconds to wait for an agent's answer: it comes with the engine's next call, at once under load."""


@dataclass(frozen=True)
class Agent:
    """An agent in a living process, and what it says of itself."""

    pid: int
    path: Path
    status: dict[str, Any]

    @property
    def recording(self) -> str | None:
        """The id of the recording that it writes to."""
        return self.status.get("recording")


def find_agent(pid: int) -> Agent | None:
    """The agent of a process, if it has one. A mailbox left by a process that is gone is removed."""
    try:
        path = Path(mailbox.directory(os.stat(f"/proc/{pid}").st_uid)) / f"{pid}.ctl"
    except FileNotFoundError:
        path = Path(mailbox.directory()) / f"{pid}.ctl"
    try:
        box = mailbox.Mailbox.open(str(path))
    except (OSError, ValueError):
        return None
    try:
        owner, start = box.process
        if ring.process_start(owner) != start:
            with suppress(OSError):
                path.unlink()
            return None
        if box.protocol != wire.PROTOCOL:
            raise TargetError(
                f"the agent in process {pid} is of another version of fdtrace",
                why=f"it speaks protocol {box.protocol}, this one {wire.PROTOCOL}",
                hint="use the fdtrace that it was armed with, or restart the engine",
            )
        return Agent(pid, path, _status(box))
    finally:
        box.close()


def _status(box: mailbox.Mailbox) -> dict[str, Any]:
    for _ in range(50):  # it may be writing just now
        try:
            return box.status()
        except ValueError:
            time.sleep(0.001)
    return {}


def agents() -> list[Agent]:
    """Every agent of this user; root sees those of all."""
    directories = {mailbox.directory()}
    if os.geteuid() == 0:
        directories.update(glob.glob("/tmp/fdtrace-[0-9]*"))
    names = [name for directory in sorted(directories) for name in _names(directory)]
    pids = sorted({int(name[:-4]) for name in names if name.endswith(".ctl") and name[:-4].isdigit()})
    found = []
    for pid in pids:
        with suppress(TargetError):  # of another version of fdtrace: not ours to speak to
            found.append(find_agent(pid))
    return [agent for agent in found if agent is not None]


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


@contextmanager
def _alone(path: Path) -> Iterator[mailbox.Mailbox]:
    """The mailbox, no other controller using it meanwhile."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        box = mailbox.Mailbox.open(str(path))
        try:
            yield box
        finally:
            box.close()
    finally:
        os.close(fd)


def command(agent: Agent, order: dict[str, Any], wait: float = ANSWER_WAIT) -> dict[str, Any] | None:
    """Leave an order for an agent; its status once it obeyed, or None where it did not within `wait` seconds.

    An idle engine makes no calls, so the order waits in the mailbox for its next one.
    """
    return commands([agent], order, wait)[0]


def commands(
    agents: list[Agent], order: dict[str, Any], wait: float = ANSWER_WAIT
) -> list[dict[str, Any] | None]:
    """`command` for each of these agents, at once: `wait` is for all of them together."""
    found: list[dict[str, Any] | None] = [None] * len(agents)
    with ExitStack() as stack:
        boxes = [stack.enter_context(_alone(agent.path)) for agent in agents]
        numbers = [box.send(order) for box in boxes]
        deadline = time.monotonic() + wait
        while True:
            for i, box in enumerate(boxes):
                if found[i] is None and box.answered(numbers[i]):
                    found[i] = _status(box)
            if None not in found or time.monotonic() > deadline:
                return found
            time.sleep(0.002)

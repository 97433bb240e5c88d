"""The agent of one process: which hooks are in place, whether it records, and the commands that it obeys."""

from __future__ import annotations

import _thread  # not threading: an injected thread that is the first to import that becomes its MainThread
import json
import mmap
import os
import socket
import sys
import time
from time import monotonic
from typing import Any, Callable

from . import adapters, hooks, mailbox, ring, wire
from .writer import Writer

LOOK_EVERY = 0.02
"""Seconds between two looks into the mailbox, which are made in hooked calls: each is a system call."""

MADV_WIPEONFORK = 18
"""Of madvise(2): a child finds zeros in the page. `mmap` names it from Python 3.13 on."""

CHECK_EVERY = 10.0
"""Seconds between two looks whether the mailbox is still there: what cleans up /tmp may have removed it."""

RETRY_FIRST, RETRY_MOST = 1.0, 60.0
"""Seconds until a mailbox that could not be made is tried again: the first time, doubled each time, and at most."""


class Agent:
    """One a process. Wrappers ask `needs_attention` in each call; all else happens in `attend`, inline."""

    def __init__(self, keep_hooks: bool) -> None:
        """`keep_hooks`: armed processes stay armed after a recording; an injected agent gives the classes back."""
        self.keep_hooks = keep_hooks
        self.on = self.gone = False
        self.lock = _thread.allocate_lock()
        self.installed: list[hooks.Installed] = []
        self.adapters: list[adapters.Adapter] = [adapter(self) for adapter in adapters.loaded()]
        self.writer: Writer | None = None
        self.session: dict[str, Any] | None = None
        self.wanted: dict[str, Any] | None = None
        self.problem = ""
        self.notes: list[str] = []
        self.pid = os.getpid()
        self.mark = _fork_mark()
        self.box: mailbox.Mailbox | None = None
        self.box_problem = ""
        self.seen = mailbox.NO_COMMAND
        self.look_at = self.check_at = 0.0
        self.retry_after = RETRY_FIRST

    def needs_attention(self) -> bool:
        """Whether a command waits, or this process (a fork, perhaps) has no mailbox of its own yet."""
        mark = self.mark
        if not mark[0] if mark is not None else os.getpid() != self.pid:
            return not self.gone
        now = monotonic()
        if now < self.look_at:
            return False
        self.look_at = now + LOOK_EVERY
        box = self.box
        if box is None:
            return not self.gone
        try:
            return now >= self.check_at or box.command_word() != self.seen
        except OSError:
            return True

    def attend(self, wait: bool = False) -> None:
        """Open this process's mailbox where it has none, and carry out the command that waits.

        An engine's thread never waits for another that does this already.
        """
        if os.getpid() != self.pid:
            self._become_child()
        if not self.lock.acquire(wait):
            return
        try:
            if not self.gone:  # another thread may have carried out the order to leave meanwhile
                self._attend()
        except Exception as error:
            self._without_box(error)
        finally:
            self.lock.release()

    def _attend(self) -> None:
        if self.box is not None and monotonic() >= self.check_at:
            self.check_at = monotonic() + CHECK_EVERY
            if not self.box.is_there:
                self._close_box()
        if self.box is None:
            self._open_box()
        box = self.box
        if box is None:
            return
        if self.wanted is not None:
            wanted, self.wanted = self.wanted, None
            self._try({"op": "start", "session": wanted})
            box.say(self.status())
        word = box.command_word()
        if word == self.seen:
            return
        command = box.command()
        self.seen = word
        self._try(command or {})
        box.answer(word, self.status())
        if self.gone:
            self.leave()

    def _without_box(self, error: Exception) -> None:
        """The mailbox failed. What is recorded goes on; a new one is tried after a while, seldom if that fails too."""
        self._close_box()
        self.box_problem = "no mailbox: %s" % (error,)
        self.look_at = monotonic() + self.retry_after
        self.retry_after = min(2 * self.retry_after, RETRY_MOST)

    def _close_box(self) -> None:
        box, self.box = self.box, None
        if box is not None:
            box.close()

    def _become_child(self) -> None:
        # The lock may have been held by a thread that this process does not have; ring and mailbox are the parent's.
        self.pid, self.lock, self.on, self.mark = os.getpid(), _thread.allocate_lock(), False, _fork_mark()
        self._close_box()
        self.wanted, self.session, self.writer = self.session or self.wanted, None, None

    def _open_box(self) -> None:
        where = (self.session or self.wanted or {}).get("mailboxes") or mailbox.directory()
        self.box = mailbox.Mailbox.create(where, self.pid, ring.process_start(self.pid), wire.PROTOCOL)
        self.seen, self.box_problem, self.retry_after = mailbox.NO_COMMAND, "", RETRY_FIRST
        self.look_at, self.check_at = 0.0, monotonic() + CHECK_EVERY
        self.box.say(self.status())

    def _try(self, command: dict[str, Any]) -> None:
        operation = command.get("op")
        try:
            if operation == "start" and self.session is None:
                self.start(command["session"])
            elif operation == "stop" and self.session is not None:
                self.stop(str(command.get("reason", "detach")))
        except Exception as error:
            self.switch_off(error)

    def start(self, session: dict[str, Any]) -> None:
        """Begin to record into a ring of this process in the session's directory."""
        if session.get("protocol") != wire.PROTOCOL:
            raise ValueError(
                "agent's protocol is %d, collector's %r" % (wire.PROTOCOL, session.get("protocol"))
            )
        segments, size = int(session["segments"]), int(session["segment_size"])
        path = os.path.join(session["dir"], "%d-%d.ring" % (self.pid, time.time_ns()))
        page = ring.create(path, wire.PROTOCOL, time.time_ns(), segments, size)
        way = "armed" if self.keep_hooks else "injected"
        self.writer = Writer(page, segments, size, self._describe, self._snapshot, way)
        self.session, self.problem = session, ""
        for adapter in self.adapters:
            adapter.begin(self.writer)
        self.on = True

    def stop(self, reason: str) -> None:
        """End the recording and give the classes back (armed processes keep inert hooks)."""
        self.on = False
        writer, self.writer, self.session = self.writer, None, None
        self._end()
        if writer is not None:
            writer.event("detached", reason=reason)
            writer.close()
        if not self.keep_hooks:
            self.remove()

    def _end(self) -> None:
        """The adapters give back what they put in the place of something of the engine's."""
        for adapter in self.adapters:
            end = getattr(adapter, "end", None)
            if end is not None:
                end()

    def remove(self) -> None:
        """Restore every class and let go of what this agent knows of the engine.

        The modules stay, for the next recording: their classes could only be freed by a collection of the whole heap,
        which a server has frozen or switched off, so that each new load would leave some 70 KiB behind.
        """
        self.gone = True
        for installed in self.installed:
            left = hooks.restore(installed)
            if left:
                self.notes.append(left)
        self.installed = []
        for adapter in self.adapters:
            vars(adapter).clear()
        self.adapters = []

    def leave(self) -> None:
        """`remove`, and take no more commands: nobody finds a mailbox that no hook looks into."""
        if not self.gone:
            self.remove()
        box, self.box = self.box, None
        if box is not None:
            box.remove()

    def install(self) -> None:
        """Wrap what is loaded of every known engine and is not wrapped yet."""
        for adapter in self.adapters:
            for hook in adapter.hooks:
                self.installed += hooks.install(self, hook)

    def switch_off(self, error: BaseException) -> None:
        """Something here failed: record no more, keep what was recorded, and say why."""
        self.on = False
        self.problem = "%s: %s" % (type(error).__name__, error)
        writer, self.writer, self.session = self.writer, None, None
        self._quietly(self._end)
        if writer is not None:
            self._quietly(lambda: writer.event("switched_off", reason=self.problem[:500]))
            self._quietly(writer.close)
        box = self.box
        if box is not None:
            self._quietly(lambda: box.say(self.status()))

    def _quietly(self, call: Callable[[], None]) -> None:
        """What may fail because ring or mailbox did: `problem` is all that can be said then."""
        try:
            call()
        except Exception:
            pass

    def status(self) -> dict[str, Any]:
        """What this process does, for `fdtrace status` and for whoever attaches."""
        session = self.session or {}
        return {
            "pid": self.pid,
            "host": socket.gethostname(),
            "python": "%d.%d.%d" % sys.version_info[:3],
            "armed": self.keep_hooks,
            "recording": session.get("id"),
            "output": session.get("output"),
            "hooks": sorted("%s.%s" % (i.owner.__name__, i.hook.method) for i in self.installed),
            "problem": self.problem or self.box_problem,
            "notes": self.notes,
        }

    def _describe(self) -> dict[str, Any]:
        """The engine's row; where both sides of it are in this process, the scheduling side is asked."""
        for adapter in self.adapters:
            if adapter.active:
                return adapter.describe()
        return {}

    def _snapshot(self) -> Any:
        for adapter in self.adapters:
            if adapter.active:
                yield from adapter.snapshot()


def _fork_mark() -> mmap.mmap | None:
    """A page that begins with 1, and with 0 in a child of this process: asked in each hooked call, where even getpid(2)
    takes time. None where the kernel has none.
    """
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(MADV_WIPEONFORK)
    except OSError:
        return None
    page[0] = 1
    return page


def session_from_environment() -> dict[str, Any] | None:
    """The recording that `fdtrace record` asks of every process that it starts (FDTRACE_SESSION, JSON)."""
    text = os.environ.get("FDTRACE_SESSION")
    return json.loads(text) if text else None

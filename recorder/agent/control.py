"""The agent of one process: its installed hooks, whether it records, and the commands that it carries out."""

from __future__ import annotations

import _thread  # not threading: if an injected thread is the first to import that, it becomes the MainThread
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

LOOK_EVERY = 0.1
"""Seconds between two looks into the mailbox. A look is a system call within a hooked call of the engine: with cold
caches it takes a tenth of all that a step's hooks take. Who attaches or detaches can wait so long."""

MADV_WIPEONFORK = 18
"""For madvise(2): a child process finds zeros in the page. `mmap` has this name from Python 3.13 on."""

CHECK_EVERY = 10.0
"""Seconds between two checks whether the mailbox still exists: something may clean up /tmp."""

RETRY_FIRST, RETRY_MOST = 1.0, 60.0
"""Seconds until the next try to make a mailbox after a failure: at first, doubled after each failure, and at most."""


class Agent:
    """One for each process. In each call, wrappers ask `needs_attention`. All else happens in `attend`, inline."""

    def __init__(self, keep_hooks: bool) -> None:
        """`keep_hooks`: an armed process stays armed after a recording; an injected agent restores the methods."""
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
        self.mark = fork_mark(self.pid)
        self.box: mailbox.Mailbox | None = None
        self.box_problem = ""
        self.last_word = mailbox.NO_COMMAND
        self.next_look = self.next_check = 0.0
        self.retry_after = RETRY_FIRST

    def needs_attention(self) -> bool:
        """Whether a command waits, or this process has no mailbox of its own yet (perhaps since it is a fork)."""
        if not self.mark[0]:
            return not self.gone
        now = monotonic()
        if now < self.next_look:
            return False
        self.next_look = now + LOOK_EVERY
        box = self.box
        if box is None:
            return not self.gone
        try:
            return now >= self.next_check or box.command_word() != self.last_word
        except OSError:
            return True

    def attend(self, wait: bool = False) -> None:
        """Open this process's mailbox if it has none, and carry out the waiting command.

        A thread of the engine never waits for another thread that is doing this.
        """
        if os.getpid() != self.pid:
            self._become_child()
        if not self.lock.acquire(wait):
            return
        try:
            if not self.gone:  # in the meantime, another thread may have carried out the order to leave
                self._attend()
        except Exception as error:
            self._without_box(error)
        finally:
            self.lock.release()

    def _attend(self) -> None:
        if self.box is not None and monotonic() >= self.next_check:
            self.next_check = monotonic() + CHECK_EVERY
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
            box.write_status(self.status())
        word = box.command_word()
        if word == self.last_word:
            return
        command = box.command()
        self.last_word = word
        self._try(command or {})
        box.answer(word, self.status())
        if self.gone:
            self.leave()

    def _without_box(self, error: Exception) -> None:
        """The mailbox failed. A recording goes on. A new mailbox is tried later, after longer and longer pauses."""
        self._close_box()
        self.box_problem = "no mailbox: %s" % (error,)
        self.next_look = monotonic() + self.retry_after
        self.retry_after = min(2 * self.retry_after, RETRY_MOST)

    def _close_box(self) -> None:
        box, self.box = self.box, None
        if box is not None:
            box.close()

    def _become_child(self) -> None:
        # A thread that this process does not have may have held the lock. Ring and mailbox belong to the parent.
        self.pid, self.lock, self.on = os.getpid(), _thread.allocate_lock(), False
        self.mark = fork_mark(self.pid)
        self._close_box()
        self.wanted, self.session, self.writer = self.session or self.wanted, None, None

    def _open_box(self) -> None:
        directory_path = (self.session or self.wanted or {}).get("mailboxes") or mailbox.directory()
        self.box = mailbox.Mailbox.create(
            directory_path, self.pid, ring.process_start(self.pid), wire.PROTOCOL
        )
        self.last_word, self.box_problem, self.retry_after = mailbox.NO_COMMAND, "", RETRY_FIRST
        self.next_look, self.next_check = 0.0, monotonic() + CHECK_EVERY
        self.box.write_status(self.status())

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
        attached_by = "armed" if self.keep_hooks else "injected"
        self.writer = Writer(page, segments, size, self._describe, self._snapshot, attached_by)
        self.session, self.problem = session, ""
        for adapter in self.adapters:
            adapter.begin(self.writer)
        self.on = True

    def stop(self, reason: str) -> None:
        """End the recording and restore the original methods. Armed processes keep hooks that do nothing."""
        self.on = False
        writer, self.writer, self.session = self.writer, None, None
        self._end()
        if writer is not None:
            writer.event("detached", reason=reason)
            writer.close()
        if not self.keep_hooks:
            self.remove()

    def _end(self) -> None:
        """Let the adapters restore objects of the engine that they replaced."""
        for adapter in self.adapters:
            end = getattr(adapter, "end", None)
            if end is not None:
                end()

    def remove(self) -> None:
        """Restore every class, and drop all references to objects of the engine.

        The modules stay, for the next recording. Only a full garbage collection could free their classes, and a server
        freezes or disables that: each new load would leave some 70 KiB behind.
        """
        self.gone = True
        for installed in self.installed:
            note = hooks.restore(installed)
            if note:
                self.notes.append(note)
        self.installed = []
        for adapter in self.adapters:
            vars(adapter).clear()
        self.adapters = []

    def leave(self) -> None:
        """`remove`, and take no more commands: no hook would look into the mailbox, so it goes too."""
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
        """Something in the agent failed: stop recording, keep what was recorded, and say why."""
        self.on = False
        self.problem = "%s: %s" % (type(error).__name__, error)
        writer, self.writer, self.session = self.writer, None, None
        self._quietly(self._end)
        if writer is not None:
            self._quietly(lambda: writer.event("switched_off", reason=self.problem[:500]))
            self._quietly(writer.close)
        box = self.box
        if box is not None:
            self._quietly(lambda: box.write_status(self.status()))

    def _quietly(self, call: Callable[[], None]) -> None:
        """Call something that may fail because ring or mailbox failed. Then `problem` is all that can be said."""
        try:
            call()
        except Exception:
            pass

    def status(self) -> dict[str, Any]:
        """The state of this process, for `fdtrace status` and for whoever attaches."""
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
        """The engine's row. If both sides of the engine are in this process, it comes from the scheduling side."""
        for adapter in self.adapters:
            if adapter.active:
                return adapter.describe()
        return {}

    def _snapshot(self) -> Any:
        for adapter in self.adapters:
            if adapter.active:
                yield from adapter.snapshot()


class ForkMark:
    """The mark of a process, where the kernel can make no page that changes in a child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __getitem__(self, index: int) -> bool:
        return os.getpid() == self.pid


def fork_mark(pid: int) -> mmap.mmap | ForkMark:
    """A page that begins with 1 here, and with 0 in a child of this process, which is `pid`.

    Each hooked call asks for it: even getpid(2) would take time there.
    """
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(MADV_WIPEONFORK)
    except OSError:
        return ForkMark(pid)
    page[0] = 1
    return page


def session_from_environment() -> dict[str, Any] | None:
    """The recording that `fdtrace record` wants from every process that it starts (FDTRACE_SESSION, JSON)."""
    text = os.environ.get("FDTRACE_SESSION")
    return json.loads(text) if text else None

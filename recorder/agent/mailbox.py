"""A page in a file through which a process that is armed or recorded takes commands and says what it does.

No thread and no socket in the engine: the agent compares one word in each hooked call. The controller writes the
command as JSON, then raises the command word; the agent writes its answer, then sets the answer word to it. One
controller at a time: it holds an exclusive flock on the file.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
import struct
from typing import Any

MAGIC = b"FDTMAIL1"
SIZE = 8192
COMMAND, ANSWER = 64, 72
COMMAND_TEXT, STATUS_TEXT = 512, 4096

HEADER = struct.Struct("<8sIIQ")
"""Magic, protocol, pid, the process's start time in clock ticks."""


def directory(uid: int | None = None) -> str:
    """The private directory of a user's mailboxes: FDTRACE_DIR, else one in /tmp whatever TMPDIR says there."""
    named = os.environ.get("FDTRACE_DIR")
    return named or "/tmp/fdtrace-%d" % (os.geteuid() if uid is None else uid)


def private_directory(path: str) -> str:
    """Make `path` (mode 0700) unless it is there; PermissionError where it is not this user's alone."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError("%s is not a directory of this user alone (mode 0700)" % path)
    return path


class Mailbox:
    """The file, mapped. `path` is where it lies."""

    def __init__(self, path: str, page: mmap.mmap) -> None:
        self.path, self.page = path, page
        self.view = memoryview(page)
        self.words = self.view.cast("Q")

    @classmethod
    def create(cls, where: str, pid: int, start: int, protocol: int) -> Mailbox:
        """Make the mailbox of this process; one left by an earlier process of the same pid goes."""
        path = os.path.join(private_directory(where), "%d.ctl" % pid)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, SIZE)
            page = mmap.mmap(fd, SIZE)
        finally:
            os.close(fd)
        HEADER.pack_into(page, 0, MAGIC, protocol, pid, start)
        return cls(path, page)

    @classmethod
    def open(cls, path: str) -> Mailbox:
        """Map an existing one (the controller's side). OSError or ValueError where it is none."""
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            page = mmap.mmap(fd, SIZE)
        finally:
            os.close(fd)
        if page[:8] != MAGIC:
            page.close()
            raise ValueError("%s is no mailbox of fdtrace" % path)
        return cls(path, page)

    @property
    def protocol(self) -> int:
        """The protocol of the agent that made it."""
        return int(HEADER.unpack_from(self.page)[1])

    @property
    def process(self) -> tuple[int, int]:
        """Pid and start time of the process that made it."""
        _, _, pid, start = HEADER.unpack_from(self.page)
        return int(pid), int(start)

    def _write(self, offset: int, limit: int, value: Any) -> None:
        text = json.dumps(value).encode()
        if len(text) + 4 > limit:
            text = json.dumps({"error": "message too long", "length": len(text)}).encode()
        struct.pack_into("<I", self.page, offset, len(text))
        self.page[offset + 4 : offset + 4 + len(text)] = text

    def _read(self, offset: int) -> Any:
        (length,) = struct.unpack_from("<I", self.page, offset)
        return json.loads(self.page[offset + 4 : offset + 4 + length]) if length else None

    def send(self, command: dict[str, Any]) -> int:
        """Leave a command for the process; the number that its answer will carry."""
        self._write(COMMAND_TEXT, STATUS_TEXT - COMMAND_TEXT, command)
        self.words[COMMAND >> 3] += 1
        return self.words[COMMAND >> 3]

    def command(self) -> tuple[int, Any]:
        """The last command and its number."""
        return self.words[COMMAND >> 3], self._read(COMMAND_TEXT)

    def answer(self, number: int, status: dict[str, Any]) -> None:
        """Say what the process does, in answer to command `number`."""
        self.say(status)
        self.words[ANSWER >> 3] = number

    def answered(self, number: int) -> bool:
        """Whether command `number` was carried out."""
        return self.words[ANSWER >> 3] >= number

    def say(self, status: dict[str, Any]) -> None:
        """Leave a status to be read by anybody of this user."""
        self._write(STATUS_TEXT, SIZE - STATUS_TEXT, status)

    def status(self) -> dict[str, Any]:
        """What the process says of itself."""
        return self._read(STATUS_TEXT) or {}

    def close(self) -> None:
        """Unmap it; the file stays."""
        self.words.release()
        self.view.release()
        self.page.close()

    def remove(self) -> None:
        """Unmap it and remove the file."""
        try:
            os.unlink(self.path)
        except OSError:
            pass
        self.close()

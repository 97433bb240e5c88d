"""A small file through which a process that is armed or recorded takes commands and says what it does.

No thread and no socket in the engine: the agent reads one word now and then in its hooked calls. The controller writes
the command as JSON, then raises the command word; the agent writes its answer, then sets the answer word to it. One
controller at a time: it holds an exclusive flock on the file.

Neither side maps the file. A mapping whose file is cut short, or whose file system is full, is a SIGBUS, which no
Python code survives; a read or a write of such a file is an error or comes back short.
"""

from __future__ import annotations

import errno
import json
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

WORD = struct.Struct("<Q")
NO_COMMAND = WORD.pack(0)
"""The command word of a fresh mailbox."""

MODE = 0o600


def directory(uid: int | None = None) -> str:
    """The private directory of a user's mailboxes: FDTRACE_DIR, else one in /tmp whatever TMPDIR says there."""
    named = os.environ.get("FDTRACE_DIR")
    return named or "/tmp/fdtrace-%d" % (os.geteuid() if uid is None else uid)


def open_directory(path: str, uid: int | None = None, make: bool = False) -> int:
    """A descriptor of the private directory `path` of a user (None: this one).

    `make`: as one of mode 0700 where there is none. PermissionError names a directory that is another user's, or that
    others can look into; nothing in such a directory is used.
    """
    owner = os.geteuid() if uid is None else uid
    if make:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EACCES):
            raise
        found = os.lstat(path)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == owner:
            raise
        raise PermissionError(_not_private(path, found, owner))
    found = os.fstat(fd)
    if found.st_uid != owner or found.st_mode & 0o077:
        os.close(fd)
        raise PermissionError(_not_private(path, found, owner))
    return fd


def _not_private(path: str, found: os.stat_result, owner: int) -> str:
    if not stat.S_ISDIR(found.st_mode):
        return "%s, of user %d, is no directory; it should be one of user %d" % (path, found.st_uid, owner)
    if found.st_uid != owner:
        return "%s belongs to user %d, and should be user %d's" % (path, found.st_uid, owner)
    return "%s is open to other users (mode %04o, should be 0700)" % (path, found.st_mode & 0o7777)


def check_file(fd: int, path: str, uid: int) -> os.stat_result:
    """What fstat says of an open file of ours; PermissionError where it is no plain file of that user alone."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise PermissionError("%s, of user %d, is no plain file" % (path, found.st_uid))
    if found.st_uid != uid:
        raise PermissionError("%s belongs to user %d, and should be user %d's" % (path, found.st_uid, uid))
    if found.st_mode & 0o077:
        raise PermissionError("%s is open to other users (mode %04o)" % (path, found.st_mode & 0o7777))
    if found.st_nlink > 1:
        raise PermissionError("%s has %d names (hard links)" % (path, found.st_nlink))
    return found


def file_name(pid: int) -> str:
    """The name of a process's mailbox in its directory."""
    return "%d.ctl" % pid


class Mailbox:
    """The open file. `path` is where it lies."""

    def __init__(self, path: str, fd: int) -> None:
        self.path, self.fd = path, fd
        found = os.fstat(fd)
        self.identity = found.st_dev, found.st_ino

    @classmethod
    def create(cls, where: str, pid: int, start: int, protocol: int) -> Mailbox:
        """Make the mailbox of this process; one left by an earlier process of the same pid goes.

        OSError where that cannot be done, a full file system among the reasons; then nothing is left.
        """
        name = file_name(pid)
        directory_fd = open_directory(where, make=True)
        try:
            try:
                os.unlink(name, dir_fd=directory_fd)
            except FileNotFoundError:
                pass
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, MODE, dir_fd=directory_fd)
            try:
                os.fchmod(fd, MODE)
                _write_all(fd, HEADER.pack(MAGIC, protocol, pid, start).ljust(SIZE, b"\0"), 0)
                return cls(os.path.join(where, name), fd)
            except BaseException:
                os.close(fd)
                os.unlink(name, dir_fd=directory_fd)
                raise
        finally:
            os.close(directory_fd)

    @classmethod
    def open(cls, where: str, pid: int, uid: int) -> Mailbox:
        """Open that of a process of user `uid` (the controller's side).

        FileNotFoundError where it has none, PermissionError where another user could have made it, ValueError where it
        is no mailbox.
        """
        path = os.path.join(where, file_name(pid))
        directory_fd = open_directory(where, uid)
        try:
            # Not to wait for whoever should open the other end, should it be a FIFO.
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(file_name(pid), flags, dir_fd=directory_fd)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise PermissionError("%s is a symbolic link" % path)
        finally:
            os.close(directory_fd)
        try:
            if check_file(fd, path, uid).st_size < SIZE or os.pread(fd, 8, 0) != MAGIC:
                raise ValueError("%s is no mailbox of fdtrace" % path)
            return cls(path, fd)
        except BaseException:
            os.close(fd)
            raise

    @property
    def is_there(self) -> bool:
        """Whether the descriptor is still that of our file, and the file still has its name.

        A program may close every descriptor that it has, and get the same number for a file of its own.
        """
        try:
            found = os.fstat(self.fd)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self.identity and found.st_nlink == 1

    @property
    def protocol(self) -> int:
        """The protocol of the agent that made it."""
        return int(self._header()[1])

    @property
    def process(self) -> tuple[int, int]:
        """Pid and start time of the process that made it."""
        _, _, pid, start = self._header()
        return int(pid), int(start)

    def _header(self) -> tuple[Any, ...]:
        return HEADER.unpack(self._bytes(0, HEADER.size))

    def _bytes(self, offset: int, size: int) -> bytes:
        data = os.pread(self.fd, size, offset)
        if len(data) < size:
            raise ValueError("%s was cut short" % self.path)
        return data

    def _write(self, offset: int, limit: int, value: Any) -> None:
        text = json.dumps(value).encode()
        if len(text) + 4 > limit:
            text = json.dumps({"error": "message too long", "length": len(text)}).encode()
        if not self.is_there:
            raise FileNotFoundError(errno.ENOENT, "the mailbox was removed", self.path)
        _write_all(self.fd, struct.pack("<I", len(text)) + text, offset)

    def _read(self, offset: int, limit: int) -> Any:
        (length,) = struct.unpack("<I", self._bytes(offset, 4))
        if length + 4 > limit:
            raise ValueError("%s: a text of %d bytes" % (self.path, length))
        return json.loads(self._bytes(offset + 4, length)) if length else None

    def _number(self, offset: int) -> int:
        return int(WORD.unpack(self._bytes(offset, 8))[0])

    def send(self, command: dict[str, Any]) -> int:
        """Leave a command for the process; the number that its answer will carry."""
        number = self._number(COMMAND) + 1
        self._write(COMMAND_TEXT, STATUS_TEXT - COMMAND_TEXT, command)
        _write_all(self.fd, WORD.pack(number & (1 << 64) - 1), COMMAND)
        return number

    def command_word(self) -> bytes:
        """Changes with each command; empty where the file was cut. The one thing that is read in hooked calls."""
        return os.pread(self.fd, 8, COMMAND)

    def command(self) -> Any:
        """The last command."""
        return self._read(COMMAND_TEXT, STATUS_TEXT - COMMAND_TEXT)

    def answer(self, word: bytes, status: dict[str, Any]) -> None:
        """Say what the process does, in answer to the command of that word."""
        self.say(status)
        _write_all(self.fd, word, ANSWER)

    def answered(self, number: int) -> bool:
        """Whether command `number` was carried out."""
        return self._number(ANSWER) >= number

    def say(self, status: dict[str, Any]) -> None:
        """Leave a status to be read by anybody of this user."""
        self._write(STATUS_TEXT, SIZE - STATUS_TEXT, status)

    def status(self) -> dict[str, Any]:
        """What the process says of itself; ValueError while it is being written."""
        said = self._read(STATUS_TEXT, SIZE - STATUS_TEXT)
        return said if isinstance(said, dict) else {}

    def close(self) -> None:
        """Close it; the file stays. A descriptor that has become another file's is left alone."""
        try:
            found = os.fstat(self.fd)
            if (found.st_dev, found.st_ino) == self.identity:
                os.close(self.fd)
        except OSError:
            pass

    def remove(self) -> None:
        """Close it and remove the file."""
        try:
            if self.is_there:
                os.unlink(self.path)
        except OSError:
            pass
        self.close()


def _write_all(fd: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)

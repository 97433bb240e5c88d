"""A small file through which an armed or recorded process takes commands and reports its status.

The engine gets no thread and no socket: the agent reads one word now and then, in its hooked calls. The controller
writes the command as JSON, then increases the command word. The agent writes its answer, then sets the answer word to
the command word. There is one controller at a time: it holds an exclusive flock on the file.

Neither side maps the file. If a mapped file is cut short, or its file system is full, access to it raises SIGBUS, which
no Python code survives. A plain read or write of such a file only fails or comes back short.
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
"""The command word of a new mailbox."""

MODE = 0o600


def directory(uid: int | None = None) -> str:
    """The private directory of a user's mailboxes: FDTRACE_DIR, else a directory in /tmp, whatever TMPDIR says."""
    named = os.environ.get("FDTRACE_DIR")
    return named or "/tmp/fdtrace-%d" % (os.geteuid() if uid is None else uid)


def open_directory(path: str, uid: int | None = None, make: bool = False) -> int:
    """A descriptor of the private directory `path` of a user (None: this one).

    `make`: if there is none, make it with mode 0700. Raises PermissionError if the directory belongs to another user,
    or if other users can look into it: nothing in such a directory is used.
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
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode) and status.st_uid == owner:
            raise
        raise PermissionError(_not_private(path, status, owner))
    status = os.fstat(fd)
    if status.st_uid != owner or status.st_mode & 0o077:
        os.close(fd)
        raise PermissionError(_not_private(path, status, owner))
    return fd


def _not_private(path: str, status: os.stat_result, owner: int) -> str:
    if not stat.S_ISDIR(status.st_mode):
        return "%s, of user %d, is no directory; it should be one of user %d" % (path, status.st_uid, owner)
    if status.st_uid != owner:
        return "%s belongs to user %d, and should be user %d's" % (path, status.st_uid, owner)
    return "%s is open to other users (mode %04o, should be 0700)" % (path, status.st_mode & 0o7777)


def check_file(fd: int, path: str, uid: int) -> os.stat_result:
    """The fstat of an open file of ours. Raises PermissionError unless it is a plain file of that user alone."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise PermissionError("%s, of user %d, is no plain file" % (path, status.st_uid))
    if status.st_uid != uid:
        raise PermissionError("%s belongs to user %d, and should be user %d's" % (path, status.st_uid, uid))
    if status.st_mode & 0o077:
        raise PermissionError("%s is open to other users (mode %04o)" % (path, status.st_mode & 0o7777))
    if status.st_nlink > 1:
        raise PermissionError("%s has %d names (hard links)" % (path, status.st_nlink))
    return status


def file_name(pid: int) -> str:
    """The name of a process's mailbox in its directory."""
    return "%d.ctl" % pid


class Mailbox:
    """The open file. `path` is its path."""

    def __init__(self, path: str, fd: int) -> None:
        self.path, self.fd = path, fd
        file_status = os.fstat(fd)
        self.identity = file_status.st_dev, file_status.st_ino

    @classmethod
    def create(cls, directory_path: str, pid: int, start: int, protocol: int) -> Mailbox:
        """Make the mailbox of this process. A mailbox of an earlier process with the same pid is removed.

        Raises OSError if that fails, for example on a full file system. Then no file is left.
        """
        name = file_name(pid)
        directory_fd = open_directory(directory_path, make=True)
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
                return cls(os.path.join(directory_path, name), fd)
            except BaseException:
                os.close(fd)
                os.unlink(name, dir_fd=directory_fd)
                raise
        finally:
            os.close(directory_fd)

    @classmethod
    def open(cls, directory_path: str, pid: int, uid: int) -> Mailbox:
        """Open the mailbox of a process of user `uid`. The controller calls this.

        Raises:
            FileNotFoundError: the process has none.
            PermissionError: another user could have made it.
            ValueError: the file is no mailbox.
        """
        path = os.path.join(directory_path, file_name(pid))
        directory_fd = open_directory(directory_path, uid)
        try:
            # Without blocking: if it is a FIFO, `open` would wait until somebody opens its other end.
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

        A program may close all its descriptors, and then get the same number for a file of its own.
        """
        try:
            file_status = os.fstat(self.fd)
        except OSError:
            return False
        return (file_status.st_dev, file_status.st_ino) == self.identity and file_status.st_nlink == 1

    @property
    def protocol(self) -> int:
        """The protocol of the agent that made the mailbox."""
        return int(self._header()[1])

    @property
    def process(self) -> tuple[int, int]:
        """Pid and start time of the process that made the mailbox."""
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
        """Leave a command for the process. Returns the number that its answer will carry."""
        # Not the number after the last one: if that is garbage, the process may not have seen it, and a number that
        # follows may be one that it has seen.
        number = max(1, int.from_bytes(os.urandom(8), "little"))
        self._write(COMMAND_TEXT, STATUS_TEXT - COMMAND_TEXT, command)
        _write_all(self.fd, WORD.pack(number), COMMAND)
        return number

    def command_word(self) -> bytes:
        """Changes with each command; empty if the file was cut. Hooked calls read nothing else."""
        return os.pread(self.fd, 8, COMMAND)

    def command(self) -> Any:
        """The last command."""
        return self._read(COMMAND_TEXT, STATUS_TEXT - COMMAND_TEXT)

    def answer(self, word: bytes, status: dict[str, Any]) -> None:
        """Report the status in answer to the command of that word."""
        self.write_status(status)
        _write_all(self.fd, word, ANSWER)

    def answered(self, number: int) -> bool:
        """Whether command `number` was carried out."""
        return self._number(ANSWER) == number

    def write_status(self, status: dict[str, Any]) -> None:
        """Write a status that this user's other processes can read."""
        self._write(STATUS_TEXT, SIZE - STATUS_TEXT, status)

    def status(self) -> dict[str, Any]:
        """The status that the process wrote last. Raises ValueError while it is being written."""
        status = self._read(STATUS_TEXT, SIZE - STATUS_TEXT)
        return status if isinstance(status, dict) else {}

    def close(self) -> None:
        """Close the file; it stays. If the descriptor has become that of another file, it is left alone."""
        try:
            file_status = os.fstat(self.fd)
            if (file_status.st_dev, file_status.st_ino) == self.identity:
                os.close(self.fd)
        except OSError:
            pass

    def remove(self) -> None:
        """Close the mailbox and remove its file."""
        try:
            if self.is_there:
                os.unlink(self.path)
        except OSError:
            pass
        self.close()


def _write_all(fd: int, data: bytes, offset: int) -> None:
    num_written = 0
    while num_written < len(data):
        num_written += os.pwrite(fd, data[num_written:], offset + num_written)

"""The directory in shared memory in which the agents of one recording make their rings.

It belongs to the user of the recorded process, who may do anything with it. So it is used by its descriptor, and
changed with that user's own rights. A file in it names, by their inode, the parts to which it belongs. So even if a
foreign `session.json` names it, the rings of another recording are never read or removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdtrace.recorder.agent import mailbox
from fdtrace.recorder.creator_process import CreatorProcess
from fdtrace.recorder.errors import TargetError
from fdtrace.recorder.inject.users import User, acting_as, user_name

BASES = (Path("/dev/shm"), Path("/tmp"))
"""Where such directories may be, the best first: in memory, or on a disk."""

PREFIX = "fdtrace-rings-"
COUNT = 4
"""There should be room for so many rings: a server has several processes."""

OWNER = "owner"
"""The file in it that names its owner."""

MOST_BYTES = 1 << 16
"""Most bytes of an `OWNER` file of ours."""

_IDENTITY = re.compile(r"[0-9a-f]{12}")
RING_NAME = re.compile(r"[0-9]{1,20}-[0-9]{1,20}\.ring")
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Owner:
    """The owner of a directory of rings: the fdtrace that made it, and the parts of its recording."""

    maker: CreatorProcess
    parts: str
    device: int
    inode: int

    @classmethod
    def of(cls, parts: Path) -> Owner:
        """This process as the owner, for the parts at a path."""
        status = os.stat(parts)
        return cls(CreatorProcess.this(), str(parts.absolute()), status.st_dev, status.st_ino)

    @classmethod
    def parse(cls, text: bytes) -> Owner | None:
        """The owner that `dump` wrote; None if the text is something else."""
        try:
            fields = json.loads(text)
            maker = CreatorProcess.parse(fields["maker"])
            return (
                None
                if maker is None
                else cls(maker, *(fields[name] for name in ("parts", "device", "inode")))
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def dump(self) -> bytes:
        """The content of the file."""
        fields = {"maker": str(self.maker), "parts": self.parts, "device": self.device, "inode": self.inode}
        return json.dumps(fields).encode()

    def owns(self, parts: Path) -> bool:
        """Whether the directory at `parts` is exactly the one that is meant."""
        try:
            status = os.stat(parts)
        except (OSError, ValueError):
            return False
        return (status.st_dev, status.st_ino) == (self.device, self.inode)


class RingDirectory:
    """An open directory of rings. `path` is for the agents and for messages; everything else uses `fd`."""

    def __init__(self, path: Path, fd: int, user: User) -> None:
        self.path, self.fd, self.user = path, fd, user

    @classmethod
    def make(cls, identity: str, user: User, size: int, owner: Owner) -> RingDirectory:
        """Make a directory for processes of `user`, where there is room for `COUNT` rings of `size` bytes, or for one.

        Raises:
            TargetError: there is no room, or another user has made something in its place.
        """
        with acting_as(user):
            private = _base(size) / f"{PREFIX}{user.uid}"
            try:
                above = mailbox.open_directory(str(private), user.uid, make=True)
            except PermissionError as error:
                raise _not_ours(private, user, error) from None
            try:
                # Until it has a file that names its owner, its own name says who made it.
                fresh = f"new-{owner.maker}-{identity}"
                os.mkdir(fresh, 0o700, dir_fd=above)
                fd = os.open(fresh, _OPEN_DIRECTORY, dir_fd=above)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with open(os.open(OWNER, flags, 0o600, dir_fd=fd), "wb") as file:
                    file.write(owner.dump())
                os.rename(fresh, identity, src_dir_fd=above, dst_dir_fd=above)
            finally:
                os.close(above)
        return cls(private / identity, fd, user)

    @classmethod
    def find(cls, path: str, identity: str, parts: Path) -> RingDirectory | None:
        """Open the directory at `path`, if it is one that we make and belongs to the recording of those parts."""
        rings = next((d for d in _every(identity) if str(d.path) == path), None)
        if rings is None:
            return None
        owner = rings.owner
        if owner is None or not owner.owns(parts):
            rings.close()
            return None
        return rings

    @property
    def owner(self) -> Owner | None:
        """The owner that its file names; None if it has no such file."""
        try:
            fd = os.open(OWNER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
            with open(fd, "rb") as file:
                mailbox.check_file(fd, OWNER, self.user.uid)
                return Owner.parse(file.read(MOST_BYTES))
        except OSError:
            return None

    def rings(self) -> list[str]:
        """The names of its rings."""
        return sorted(name for name in os.listdir(self.fd) if RING_NAME.fullmatch(name))

    def open(self, name: str) -> int:
        """A descriptor for reading a ring. Raises OSError unless it is a plain file of the user alone."""
        if not RING_NAME.fullmatch(name):
            raise FileNotFoundError(f"{name!r} is no name of a ring")
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            mailbox.check_file(fd, str(self.path / name), self.user.uid)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def remove(self) -> None:
        """Remove the directory and all that is in it."""
        with acting_as(self.user), contextlib.suppress(OSError):
            for name in os.listdir(self.fd):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self.fd)
            above = mailbox.open_directory(str(self.path.parent), self.user.uid)
            try:
                entry = os.stat(self.path.name, dir_fd=above, follow_symlinks=False)
                if os.path.samestat(entry, os.fstat(self.fd)):
                    os.rmdir(self.path.name, dir_fd=above)
            finally:
                os.close(above)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


def every_directory() -> Iterator[RingDirectory]:
    """Every directory of rings of this user, also unfinished ones; for root: of all users. The caller closes each."""
    return _every(None)


def _every(identity: str | None) -> Iterator[RingDirectory]:
    if identity is not None and not _IDENTITY.fullmatch(identity):
        return
    for private, user in _private_directories():
        try:
            above = mailbox.open_directory(str(private), user.uid)
        except OSError:
            continue
        try:
            for name in [identity] if identity is not None else os.listdir(above):
                with contextlib.suppress(OSError):
                    fd = os.open(name, _OPEN_DIRECTORY, dir_fd=above)
                    if _is_private(os.fstat(fd), user.uid):
                        yield RingDirectory(private / name, fd, user)
                    else:
                        os.close(fd)
        finally:
            os.close(above)


def _private_directories() -> Iterator[tuple[Path, User]]:
    me = os.geteuid()
    for base in BASES:
        names = [f"{PREFIX}{me}"]
        if me == 0:
            with contextlib.suppress(OSError):
                names = [name for name in os.listdir(base) if name.startswith(PREFIX)]
        for name in names:
            with contextlib.suppress(OSError):
                status = os.lstat(base / name)
                if stat.S_ISDIR(status.st_mode) and name == f"{PREFIX}{status.st_uid}":
                    yield base / name, User(status.st_uid, status.st_gid)


def _is_private(status: os.stat_result, uid: int) -> bool:
    return status.st_uid == uid and not status.st_mode & 0o077


def _base(size: int) -> Path:
    rooms = {base: _room(base) for base in BASES}
    for count in (COUNT, 1):
        for base, room in rooms.items():
            if room >= count * size:
                return base
    rooms_text = ", ".join(f"{base} has {room / (1 << 20):.1f}" for base, room in rooms.items())
    raise TargetError(
        "there is no room for a ring",
        why=f"{size / (1 << 20):.1f} MiB are needed for each process; {rooms_text}",
        hint="free some, or ask for less with --ring-mib (the collector may then fall behind less far)",
    )


def _not_ours(path: Path, user: User, error: PermissionError) -> TargetError:
    return TargetError(
        f"{path} cannot be used",
        why=f"{error}: fdtrace keeps the rings of {user_name(user.uid)} there, and uses nothing that another user made",
        hint="have its owner or root remove it, and find out who made it",
    )


def _room(directory: Path) -> int:
    try:
        statistics: Any = os.statvfs(directory)
    except OSError:
        return 0
    return int(statistics.f_bavail * statistics.f_frsize)

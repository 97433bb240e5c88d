"""The description of one recording: `session.json` beside its parts. `recover`, `status` and `detach` use it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
import uuid
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fdtrace.recorder.agent import mailbox, ring, wire
from fdtrace.recorder.errors import FdtraceError, TargetError, TraceError
from fdtrace.recorder.flight.flight_plan import FlightPlan
from fdtrace.recorder.inject.users import User, acting_as, user_of
from fdtrace.recorder.leftovers import sweep
from fdtrace.recorder.ring_directory import Owner, RingDirectory
from fdtrace.recorder.trace_paths import parts_directory

MOST_BYTES = 1 << 20
"""Most bytes of a `session.json` of ours."""


@dataclass
class Session:
    """What one recording was asked to do. `dir` is the directory in which the agents make their rings."""

    id: str
    output: str
    dir: str
    created_at: int
    segments: int = ring.DEFAULT_SEGMENTS
    segment_size: int = ring.DEFAULT_SEGMENT_SIZE
    mailboxes: str = ""
    protocol: int = wire.PROTOCOL
    max_steps: int | None = None
    command: list[str] = field(default_factory=list)
    target: int | None = None
    notes: list[str] = field(default_factory=list)
    flight: dict[str, Any] | None = None
    """The plan of a flight recorder (`recorder.flight.flight_plan`); None: everything is kept."""

    @classmethod
    def create(cls, output: Path, *, ring_mib: int = 8, target: int | None = None, **more: Any) -> Session:
        """Make a new recording to `output`: the parts directory and the directory of the rings.

        Args:
            output: the trace's path. Nothing may be there.
            ring_mib: MiB of a process's ring. It limits how far the collector may fall behind before the oldest steps
                are overwritten.
            target: the process to be recorded. If root records another user's process, the rings are for that user.
            more: further fields.
        """
        sweep()
        _check_free(output)
        me = User(os.geteuid(), os.getegid())
        user = me if target is None else _user_of(target)
        with acting_as(user):
            pass  # if we may not act as that user, nothing is made
        size = max(1 << 18, (ring_mib << 20) // ring.DEFAULT_SEGMENTS)
        more |= {"target": target, "mailboxes": mailbox.directory(user.uid), "segment_size": size}
        identity = uuid.uuid4().hex[:12]
        output = output.parent.resolve() / output.name
        parts = _make_parts(output)
        try:
            room = ring.PAGE + ring.DEFAULT_SEGMENTS * size
            rings = RingDirectory.make(identity, user, room, Owner.of(parts))
            rings.close()
            session = cls(identity, str(output), str(rings.path), time.time_ns(), **more)
            session.save()
        except BaseException as error:
            _remove_parts(parts)
            if isinstance(error, OSError):
                raise _cannot_write(output, error) from None
            raise
        return session

    @property
    def parts(self) -> Path:
        """The directory of the parts."""
        return parts_directory(Path(self.output))

    @property
    def path(self) -> Path:
        """This session's file."""
        return self.parts / "session.json"

    def save(self) -> None:
        """Write the file, completely or not at all."""
        directory = os.open(self.parts, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink("session.tmp", dir_fd=directory)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open("session.tmp", flags, 0o600, dir_fd=directory), "w", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self)))
            os.rename("session.tmp", "session.json", src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            os.close(directory)

    @classmethod
    def load(cls, path: Path) -> Session:
        """The session in the file at `path`. Raises TraceError if there is none.

        Its trace is always beside the directory of the file, whatever path the file names.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise ValueError("it is no plain file")
                text = file.read(MOST_BYTES)
            session = cls(**json.loads(text))
            session._check()
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise TraceError(f"{path} does not describe a recording", why=str(error)) from None
        parts = path.parent.absolute()
        session.output = str(parts.with_name(parts.name.removesuffix(".parts")))
        return session

    def _check(self) -> None:
        """Raise ValueError if a field does not have its declared type."""
        for declared in fields(self):
            if not _fits(getattr(self, declared.name), str(declared.type)):
                raise ValueError(f"its {declared.name} is no {declared.type}")
        if not re.fullmatch(r"[0-9a-f]{12}", self.id):
            raise ValueError("its id is none of ours")

    def rings(self) -> RingDirectory | None:
        """The directory of its rings; the caller closes it. None if the named directory is not this recording's."""
        return RingDirectory.find(self.dir, self.id, self.parts)

    def for_agent(self) -> dict[str, Any]:
        """What an agent needs to know."""
        names = ("id", "dir", "segments", "segment_size", "protocol", "output", "mailboxes")
        known = {name: getattr(self, name) for name in names}
        if self.flight is None:
            return known
        every = FlightPlan.from_json(self.flight).checkpoint_ns
        return {**known, "checkpoints": {"every_ns": every, "origin_ns": self.created_at}}

    def remove_rings(self) -> None:
        """Remove the rings: all that they held is in the trace."""
        rings = self.rings()
        if rings is not None:
            rings.remove()
            rings.close()

    def discard(self) -> None:
        """Nothing was recorded: remove everything that this recording has made, and nothing else."""
        self.remove_rings()
        _remove_parts(self.parts)


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "int | None": (int, type(None)),
    "list[str]": (list,),
    "dict[str, Any] | None": (dict, type(None)),
}


def _fits(value: Any, kind: str) -> bool:
    if kind == "list[str]" and isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, _KINDS[kind]) and not isinstance(value, bool)


def _user_of(pid: int) -> User:
    try:
        return user_of(pid)
    except (FileNotFoundError, ProcessLookupError):
        raise TargetError(f"process {pid} has just ended") from None


def _check_free(output: Path) -> None:
    for path, why, more in (
        (output, "a recording never overwrites another", ""),
        (
            parts_directory(output),
            "parts of a recording lie beside it",
            f"; `fdtrace recover {output}` makes a trace of the parts",
        ),
    ):
        if os.path.lexists(path):
            raise TraceError(
                f"{output} exists already", why=why, hint=f"choose another -o, or remove it{more}"
            )


def _make_parts(output: Path) -> Path:
    parts = parts_directory(output)
    try:
        os.mkdir(parts, 0o700)
    except OSError as error:
        raise _cannot_write(output, error) from None
    return parts


def _cannot_write(output: Path, error: OSError) -> FdtraceError:
    return TraceError(f"cannot write to {output.parent}", why=str(error), hint="choose another -o")


def _remove_parts(parts: Path) -> None:
    """Remove the plain files in the directory, and the directory. It is ours alone (mode 0700)."""
    with contextlib.suppress(OSError):
        for entry in parts.iterdir():
            with contextlib.suppress(OSError):
                entry.unlink()
        parts.rmdir()

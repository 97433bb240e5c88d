"""One recording's particulars, in `session.json` beside its parts: what `recover`, `status` and `detach` go by."""

from __future__ import annotations

import json
import os
import stat
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fdtrace.recorder.agent import mailbox, ring, wire
from fdtrace.recorder.errors import TraceError

SHARED_MEMORY = Path("/dev/shm")


def parts_directory(path: Path) -> Path:
    """Where the parts of the recording at `path` lie while it records."""
    return path.with_name(path.name + ".parts")


@dataclass
class Session:
    """What one recording was asked for. `dir` is where the agents make their rings."""

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

    @classmethod
    def create(cls, output: Path, *, ring_mib: int = 8, target: int | None = None, **more: Any) -> Session:
        """A new recording to `output`: makes the parts directory and the directory of the rings.

        `ring_mib` MiB a process: how far the collector may fall behind before the oldest steps are overwritten.
        `target`: the process to be recorded; the rings are for its user, where root records another's.
        """
        if output.exists() or parts_directory(output).exists():
            raise TraceError(
                f"{output} exists already",
                why="a recording never overwrites another"
                if output.exists()
                else "parts of a recording lie beside it",
                hint="choose another -o, or remove it"
                + ("" if output.exists() else f"; `fdtrace recover {output}` makes a trace of the parts"),
            )
        identity = uuid.uuid4().hex[:12]
        base = SHARED_MEMORY if _room(SHARED_MEMORY) > 4 * ring_mib << 20 else Path("/tmp")
        owner = os.geteuid() if target is None else os.stat(f"/proc/{target}").st_uid
        private = _private_directory(base / f"fdtrace-rings-{owner}", owner)
        rings = str(_private_directory(private / identity, owner))
        more |= {"target": target, "mailboxes": mailbox.directory(owner)}
        size = max(1 << 18, (ring_mib << 20) // ring.DEFAULT_SEGMENTS)
        session = cls(identity, str(output.resolve()), rings, time.time_ns(), segment_size=size, **more)
        try:
            session.save()
        except OSError as error:
            os.rmdir(rings)
            raise TraceError(
                f"cannot write to {output.parent}", why=str(error), hint="choose another -o"
            ) from None
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
        """Write the file, whole or not at all."""
        self.parts.mkdir(exist_ok=True)
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text(json.dumps(asdict(self)))
        os.replace(fresh, self.path)

    @classmethod
    def load(cls, path: Path) -> Session:
        """The session of which `path` is the file."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise TraceError(f"{path} does not describe a recording", why=str(error)) from None

    def for_agent(self) -> dict[str, Any]:
        """What an agent needs to know."""
        names = ("id", "dir", "segments", "segment_size", "protocol", "output", "mailboxes")
        return {name: getattr(self, name) for name in names}

    def remove_rings(self) -> None:
        """Remove the rings: all that they held is in the trace."""
        directory = Path(self.dir)
        if directory.is_dir():
            for ring_file in directory.iterdir():
                ring_file.unlink(missing_ok=True)
            directory.rmdir()


def _private_directory(path: Path, owner: int) -> Path:
    """Make `path` for `owner` alone unless it is there; PermissionError where it is somebody else's."""
    try:
        path.mkdir(mode=0o700)
        os.chown(path, owner, -1)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o077:
            raise PermissionError(f"{path} is not a directory of user {owner} alone (mode 0700)") from None
    return path


def _room(directory: Path) -> int:
    try:
        found = os.statvfs(directory)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize

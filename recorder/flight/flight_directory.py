"""The directory of a flight recorder: its ring, the kept traces, those that are being made, and requests for one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

from fdtrace.recorder.collector.replaced_files import is_locked, is_open
from fdtrace.recorder.flight.keep_queue import NAME
from fdtrace.recorder.printable import printable
from fdtrace.recorder.trace_paths import parts_directory

RING = "flight.duckdb"
"""The recording in progress: the last minutes, readable at any time."""

STATUS = "flight.json"
MAKING = ".keeping"
HALF = ".half"
REQUEST = re.compile(r"keep-[0-9a-f]{12}\.request")
MOST_BYTES = 1 << 16


class FlightDirectory:
    """The paths in the directory `path`, and what lies there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ring = path / RING
        self._status: dict[str, Any] | None = None

    @property
    def parts(self) -> Path:
        """The directory of the ring's parts, while it records or if it was cut off."""
        return parts_directory(self.ring)

    @property
    def kept(self) -> list[Path]:
        """The finished kept traces, oldest first."""
        return sorted(path for path in self._entries(".duckdb") if NAME.fullmatch(path.stem))

    @property
    def spools(self) -> list[Path]:
        """The directories of kept traces that are not finished yet, oldest first."""
        return sorted(
            path for path in self._entries(MAKING) if NAME.fullmatch(path.name.removesuffix(MAKING))
        )

    def _entries(self, ending: str) -> list[Path]:
        try:
            return [self.path / name for name in os.listdir(self.path) if name.endswith(ending)]
        except OSError:
            return []

    def kept_of(self, spool: Path) -> Path:
        """The path of the trace that is made of a spool."""
        return self.path / f"{spool.name.removesuffix(MAKING)}.duckdb"

    def is_taken(self, name: str) -> bool:
        """Whether a kept trace of that name is finished or is being made."""
        return any(os.path.lexists(self.path / f"{name}{end}") for end in (".duckdb", MAKING))

    def remove_halves(self) -> None:
        """Remove what a killed collector had not made completely: nothing in it is the only copy."""
        for path in self._entries(HALF):
            if NAME.fullmatch(path.name.removesuffix(HALF)):
                shutil.rmtree(path, ignore_errors=True)

    def retain(self, most: int) -> None:
        """Remove the oldest kept traces beyond `most`. One that somebody has open stays, and the next one goes."""
        kept = self.kept
        excess = len(kept) - most
        for path in kept[: max(0, len(kept) - 1)]:
            if excess <= 0:
                return
            excess -= _removed_if_unread(path)

    def ask(self, why: str) -> str:
        """Leave a request to keep a trace. Returns its file's name, which `flight.json` and the trace repeat."""
        name = f"keep-{uuid.uuid4().hex[:12]}.request"
        half = self.path / f".{name}"
        half.write_text(json.dumps({"why": why}))
        half.rename(self.path / name)
        return name

    def requests(self) -> dict[str, str]:
        """The requests that wait: file name, and why."""
        found = {}
        for path in self._entries(".request"):
            if REQUEST.fullmatch(path.name):
                with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
                    found[path.name] = printable(str(_read(path).get("why", "")), 200)
        return found

    def remove_request(self, name: str) -> None:
        """The request has been carried out."""
        if REQUEST.fullmatch(name):
            (self.path / name).unlink(missing_ok=True)

    def answer(self, request: str) -> str:
        """The name of the kept trace that a request got; empty before that."""
        answers = self.status().get("answers")
        name = answers.get(request) if isinstance(answers, dict) else None
        return name if isinstance(name, str) and NAME.fullmatch(name) else ""

    def write_status(self, status: dict[str, Any]) -> None:
        """Replace `flight.json`, if anything has changed."""
        if status != self._status:
            half = self.path / f".{STATUS}"
            half.write_text(json.dumps(status, indent=1))
            half.replace(self.path / STATUS)
            self._status = status

    def status(self) -> dict[str, Any]:
        """What the collector wrote last; empty if it wrote nothing."""
        try:
            return _read(self.path / STATUS)
        except (OSError, ValueError):
            return {}


def _read(path: Path) -> dict[str, Any]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        value = json.loads(file.read(MOST_BYTES))
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _removed_if_unread(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        opened = is_open(fd)
        if opened or (opened is None and is_locked(fd)):
            return False
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(fd)
    return True

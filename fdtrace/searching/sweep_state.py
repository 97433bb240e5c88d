"""What a sweep has computed so far, in a file: a sweep that was interrupted goes on from there."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.search.sweep_grid import SweepRow, SweepValue
from fdtrace.searching.sweeping import SweepSource


class SweepState:
    """Results by their settings. With a path, each is appended to that file as one line of JSON."""

    def __init__(self, path: Path | None, sources: Sequence[SweepSource]) -> None:
        """UsageError: the file cannot be read, or belongs to another sweep."""
        self.path = path
        self.rows: dict[str, SweepRow] = {}
        if path is None:
            return
        key = json.dumps(_key(sources))
        if path.exists():
            self._read(path, key)
        else:
            self._append(key)

    def _read(self, path: Path, key: str) -> None:
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read", why=str(error)) from None
        if lines[0] != key:
            raise UsageError(
                f"{path} is the state of another sweep, or of none",
                hint="the same source, formula, policy and objectives; or another file",
            )
        for line in filter(None, lines[1:]):
            try:
                settings, row = json.loads(line)
                self.rows[_text(settings)] = row
            except (ValueError, TypeError, AttributeError):
                pass  # an interruption cut it off: its result is computed again
        if lines[-1]:
            self._append("")

    def _append(self, line: str) -> None:
        assert self.path is not None
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written", why=error.strerror or str(error)) from None

    def known(self, settings: Mapping[str, SweepValue]) -> SweepRow | None:
        """The result of a combination, if there is one."""
        return self.rows.get(_text(settings))

    def keep(self, settings: Mapping[str, SweepValue], row: SweepRow) -> None:
        """Keep a result."""
        self.rows[_text(settings)] = row
        if self.path is not None:
            self._append(json.dumps([dict(settings), dict(row)]))


def _text(settings: Mapping[str, SweepValue]) -> str:
    return json.dumps(dict(sorted(settings.items())))


def _key(sources: Sequence[SweepSource]) -> dict[str, Any]:
    """What decides all results of a sweep."""
    contents, source = [zlib.crc32(source.path.read_bytes()) for source in sources], sources[0]
    return {
        "source": contents[0] if len(contents) == 1 else contents,
        "engine": source.engine,
        "assigned": {name: str(value) for name, value in source.assigned.items()},
        "policy": source.policy,
        "slo": source.slo,
    }

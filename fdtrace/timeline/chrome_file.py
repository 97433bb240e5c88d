"""A timeline as Chrome's trace event JSON, for chrome://tracing and tools that read only that.

Such a file is read whole into memory by its viewers: above some hundred thousand steps, Perfetto's protobuf is better.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO, Any

from fdtrace.timeline.timeline_run import TimelineArgs


class ChromeFile:
    """Writes the file. A run is a process there, a track a thread; counters belong to the process."""

    def __init__(self, file: IO[str], begin_ns: int) -> None:
        """`begin_ns`: the moment that becomes time 0."""
        self._file, self._begin_ns = file, begin_ns
        self._last = 0
        self._process: dict[int, int] = {}
        """Track -> the group at the top in which it is."""
        self._counters: dict[int, str] = {}
        self._begun = False

    def _write(self, **event: Any) -> None:
        self._file.write(",\n" if self._begun else '{"displayTimeUnit": "ms", "traceEvents": [\n')
        self._begun = True
        self._file.write(json.dumps(event))

    def _us(self, ns: int) -> float:
        return (ns - self._begin_ns) / 1000

    def group(self, name: str, parent: int | None = None) -> int:
        """As `TimelineFile`."""
        self._last += 1
        self._process[self._last] = self._last if parent is None else self._process[parent]
        if parent is None:
            self._write(ph="M", pid=self._last, name="process_name", args={"name": name})
        return self._last

    def track(self, name: str, parent: int) -> int:
        """As `TimelineFile`."""
        track = self.group(name, parent)
        place = {"ph": "M", "pid": self._process[track], "tid": track}
        self._write(**place, name="thread_name", args={"name": name})
        self._write(**place, name="thread_sort_index", args={"sort_index": track})
        return track

    def counter(self, name: str, unit: str, parent: int) -> int:
        """As `TimelineFile`."""
        track = self.group(name, parent)
        self._counters[track] = f"{unit}: {name}"
        return track

    def begin(
        self, track: int, ns: int, name: str, args: TimelineArgs, counters: Sequence[tuple[int, int]] = ()
    ) -> None:
        """As `TimelineFile`."""
        process, us = self._process[track], self._us(ns)
        self._write(ph="B", pid=process, tid=track, ts=us, name=name, args=dict(args))
        for counter, value in counters:
            self._write(ph="C", pid=process, ts=us, name=self._counters[counter], args={"value": value})

    def end(self, track: int, ns: int) -> None:
        """As `TimelineFile`."""
        self._write(ph="E", pid=self._process[track], tid=track, ts=self._us(ns))

    def instant(self, track: int, ns: int, name: str, args: TimelineArgs) -> None:
        """As `TimelineFile`."""
        place = {"pid": self._process[track], "tid": track, "ts": self._us(ns)}
        self._write(ph="i", s="t", **place, name=name, args=dict(args))

    def close(self) -> None:
        """As `TimelineFile`."""
        self._file.write("\n]}\n" if self._begun else '{"traceEvents": []}\n')

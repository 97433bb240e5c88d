"""What a file of a timeline can hold: tracks in groups, counters, slices and instants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fdtrace.timeline.timeline_run import TimelineArgs


class TimelineFile(Protocol):
    """A file that is written in one go. Times are nanoseconds since 1970 or since the run's first step."""

    def group(self, name: str, parent: int | None = None) -> int:
        """A group of tracks, in its parent; None: at the top."""

    def track(self, name: str, parent: int) -> int:
        """A track of slices or instants. On one track they come in order of time, and slices are nested."""

    def counter(self, name: str, unit: str, parent: int) -> int:
        """A track of a counter; its unit: tokens, requests, blocks, bytes."""

    def begin(
        self, track: int, ns: int, name: str, args: TimelineArgs, counters: Sequence[tuple[int, int]] = ()
    ) -> None:
        """A slice begins; at the same moment, counters get values."""

    def end(self, track: int, ns: int) -> None:
        """The slice that began last on the track, and has not ended, ends."""

    def instant(self, track: int, ns: int, name: str, args: TimelineArgs) -> None:
        """Something happens."""

    def close(self) -> None:
        """Write what is still to be written."""

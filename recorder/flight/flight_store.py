"""The parts of a flight recorder's ring: they can be dropped, oldest first, segment by segment."""

from __future__ import annotations

from collections.abc import Iterable

from fdtrace.recorder.collector.store import COMPACT_AT, Store


def serial_of(name: str) -> int:
    """The number in a part's name. Later parts have larger ones; a merged part has one of its segment's range."""
    return int(name.rpartition("-")[2].partition(".")[0])


class FlightStore(Store):
    """A store with two levels: the small parts of the current segment, and merged parts. No part spans two segments."""

    def compact(self) -> None:
        """Merge the small parts of the current segment when they are many."""
        for table, levels in self.parts.items():
            if len(levels[0]) >= COMPACT_AT:
                self.merge(table, 0)

    def seal(self) -> None:
        """Merge the small parts: the segment to which they belong ends."""
        for table, levels in self.parts.items():
            if levels[0]:
                self.merge(table, 0)

    def drop_before(self, serial: int) -> None:
        """Drop all parts with smaller numbers. Their files go when nobody reads them any more."""
        for table, levels in self.parts.items():
            old = [name for level in levels for name in level if serial_of(name) < serial]
            if old:
                self.parts[table] = [
                    [name for name in level if serial_of(name) >= serial] for level in levels
                ]
                self.retired.add(str(self.directory / name) for name in old)

    def names_from(self, serial: int) -> dict[str, list[str]]:
        """The parts of each table with numbers from `serial` on, oldest first."""
        return {
            table: [name for level in reversed(levels) for name in level if serial_of(name) >= serial]
            for table, levels in self.parts.items()
        }

    def bytes_of(self, names: Iterable[str]) -> int:
        """The size of parts on the disk."""
        return sum((self.directory / name).stat().st_size for name in names)

"""Parts with the rows that are not final: requests and calls that go on. Each publication has new ones, if any changed.

A reader sees them as ordinary parts. A collector that goes on after another one leaves them out: it has the same
requests and calls in its state.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fdtrace.recorder import schema
from fdtrace.recorder.collector.part_file import write_part
from fdtrace.recorder.trace.column_values import ColumnArrays

LIVE = {"_live_request": schema.REQUEST, "_live_call": schema.CALL}
"""The tables of such rows, as the collector calls them. Their parts have these names too."""


class LiveParts:
    """The files in a directory. `names`: the one that holds such rows of each table of the schema, if there are any."""

    def __init__(self, directory: Path, names: dict[str, str]) -> None:
        self.directory, self.names = directory, names
        self._serial = max((_serial_of(name) for name in names.values()), default=0)
        self._held: dict[str, ColumnArrays] = {}

    def write(self, tables: dict[str, ColumnArrays]) -> Iterator[str]:
        """Write the tables that are others than those of the last call, and give the paths of the files replaced."""
        for name, table in LIVE.items():
            columns = tables[name]
            if same_columns(self._held.get(name), columns):
                continue
            old = self.names.get(table.name)
            if len(columns["engine_id"]):
                self._serial += 1
                path = self.directory / f"{name}-{self._serial:08d}.parquet"
                write_part(path, table, columns)
                self.names[table.name] = path.name
            elif old is not None:
                del self.names[table.name]
            self._held[name] = dict(columns)
            if old is not None:
                yield str(self.directory / old)


def _serial_of(name: str) -> int:
    return int(name.rpartition("-")[2].partition(".")[0])


def same_columns(before: ColumnArrays | None, now: ColumnArrays) -> bool:
    """Whether columns are the same as before."""
    return before is not None and all(np.array_equal(before[name], now[name]) for name in now)

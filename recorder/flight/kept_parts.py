"""The rows of a kept trace: copied from the parts of its window and from the published database into `final`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.collector.tables import columns_of, insert
from fdtrace.recorder.sql_text import quoted

EventRow = tuple[Any, ...]
"""A row of `event` in the schema's order, with times in ns."""


class KeptParts:
    """The parts of a window, and the databases `state` (published last) and `final`, which are attached to `db`.

    `live`: by table, the part with its rows that were not final; None: the spool is of an earlier version, which had
    them in tables of `state`. `undated`: by engine, events whose step was not known yet: call, kind, request, time
    (ns), reason, detail of each; -1 is none.
    """

    def __init__(
        self, db: duckdb.DuckDBPyConnection, parts: Mapping[str, Sequence[str]],
        live: Mapping[str, str] | None, undated: Mapping[int, Sequence[Sequence[Any]]],
    ) -> None:  # fmt: skip
        self.db, self.parts, self.live, self.undated = db, parts, live, undated

    @property
    def calls(self) -> str:
        """The query of all calls, those that go on too."""
        live = self.live_source("call")
        return f"{self.source('call')} UNION ALL {live}" if self.parts.get("call") else live

    def live_source(self, table: str) -> str:
        """The query of all rows of a table that were not final."""
        if self.live is None:
            return f"FROM state.main._live_{table}"
        if table not in self.live:
            return f"FROM final.{table} WHERE false"
        return f"FROM read_parquet('{quoted(self.live[table])}')"

    def source(self, table: str) -> str:
        """The beginning of a query of a table's parts. Ask only for a table that has some."""
        listed = ", ".join(f"'{quoted(path)}'" for path in self.parts[table])
        return f"FROM read_parquet([{listed}])"

    def rows(self, table: str, columns: str, where: str, values: list[Any]) -> list[tuple[Any, ...]]:
        """Columns of the rows of the parts for which a condition holds."""
        if not self.parts.get(table):
            return []
        return self.db.execute(f"SELECT {columns} {self.source(table)} WHERE {where}", values).fetchall()

    def copy(self, table: str, where: str, values: list[Any], columns: str = "*") -> None:
        """Copy the rows of the parts for which a condition holds."""
        if self.parts.get(table):
            source = f"SELECT {columns} {self.source(table)} WHERE {where}"
            self.db.execute(f"INSERT INTO final.{table} {source}", values)

    def copy_requests(self, where: str, values: list[Any], columns: str = "*") -> None:
        """Copy the requests for which a condition holds, those that go on too."""
        self.copy("request", where, values, columns)
        live = f"SELECT {columns} FROM ({self.live_source('request')}) WHERE {where}"
        self.db.execute(f"INSERT INTO final.request {live}", values)

    def drop_events_of_others(self, engine_id: int) -> None:
        """Remove the events of an engine's requests that were not copied."""
        self.db.execute(
            "DELETE FROM final.event WHERE engine_id = $1 AND request IS NOT NULL "
            "AND request NOT IN (SELECT request FROM final.request WHERE engine_id = $1)",
            [engine_id],
        )

    def next_step(self, engine_id: int) -> int:
        """The step behind the last one that was copied; 0 if there is none."""
        query = "SELECT coalesce(max(step) + 1, 0) FROM final.step WHERE engine_id = $1"
        return int(self.db.execute(query, [engine_id]).fetchall()[0][0])

    def undated_events(self, engine_id: int) -> list[EventRow]:
        """The events of an engine whose step was not known yet. As at the end of a recording, they get the next one."""
        step = self.next_step(engine_id)
        return [
            (engine_id, step, ts, kind, None if request < 0 else request, reason or None, detail, call)
            for call, kind, request, ts, reason, detail in self.undated.get(engine_id, ())
        ]

    def add_events(self, rows: list[EventRow]) -> None:
        """Add rows of `event`."""
        if rows:
            insert(self.db, "final.event", schema.EVENT, columns_of(schema.EVENT, rows))

"""What the metrics of a flight count of the steps that its ring has dropped: summed right before they go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fdtrace.metrics.sums import Sums, sums_of
from fdtrace.recorder import schema
from fdtrace.recorder.collector.tables import create, writing_connection
from fdtrace.recorder.sql_text import quoted
from fdtrace.recorder.trace.trace import Trace

EVER = 1 << 62


class DroppedSums:
    """The sums over all parts that are gone. The collector saves them together with the parts that are left."""

    def __init__(self) -> None:
        self.sums = Sums()

    def dropping(self, parts: Mapping[str, Sequence[Path]], state: Path) -> None:
        """These parts go now. `state`: the published database, which has the engines.

        An event about a drafter counts if its step goes with it, as nearly all do.
        """
        with writing_connection() as db:
            db.execute(f"ATTACH '{quoted(state)}' AS published (READ_ONLY)")
            db.execute("CREATE TABLE engine AS FROM published.main.engine")
            for table in schema.TABLES:
                paths = ", ".join(f"'{quoted(path)}'" for path in parts.get(table.name, ()))
                if paths:
                    db.execute(f"CREATE VIEW {table.name} AS FROM read_parquet([{paths}])")
                elif table.name != "engine":
                    create(db, table.name, table)
            self.sums = self.sums.then(sums_of(Trace(state, db), 0, EVER))

    def state(self) -> dict[str, Any]:
        """As JSON, for the metrics and for a successor."""
        return self.sums.as_json()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved `state`."""
        self.sums = Sums.from_json(state)

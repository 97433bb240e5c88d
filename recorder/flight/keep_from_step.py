"""An engine's part of a kept trace that begins with a checkpoint at a step: as of a recording that was attached then.

What the checkpoint says becomes events `found`. Everything that came before is left out, and a request that was there
then has no time of arrival. A batch that was in flight is no step: its requests say so (`num_in_flight_tokens`), and
what came of it belongs to the first step.
"""

from __future__ import annotations

from fdtrace.recorder.flight.flight_segments import CutCall
from fdtrace.recorder.flight.kept_parts import EventRow, KeptParts

CAME_LATER = "(ts >= make_timestamp_ns($2) OR (ts IS NULL AND step >= $3))"
"""Whether an event came after the checkpoint. Those that follow from a step have no time."""


class StepCheckpointCopy:
    """Copies what an engine did from the checkpoint `cut` on."""

    def __init__(self, kept: KeptParts, engine_id: int, cut: CutCall) -> None:
        self.kept, self.engine_id, self.cut = kept, engine_id, cut

    def copy(self) -> None:
        """Copy all tables of this engine except `engine`."""
        kept, key, cut = self.kept, self.engine_id, self.cut
        for table in ("step", "step_request", "rank_memory"):
            kept.copy(table, "engine_id = $1 AND step >= $2", [key, cut.step])
        kept.db.execute(
            f"INSERT INTO final.call SELECT * FROM ({kept.calls}) WHERE engine_id = $1 AND ts >= make_timestamp_ns($2)",
            [key, cut.begins],
        )
        self._events()
        self._requests()
        begins = "UPDATE final.engine SET started_at = make_timestamp_ns($1) WHERE engine_id = $2"
        kept.db.execute(begins, [cut.begins, key])

    def _events(self) -> None:
        kept, key, cut = self.kept, self.engine_id, self.cut
        kept.copy(
            "event",
            f"engine_id = $1 AND kind NOT IN ('arrived', 'checkpoint') AND {CAME_LATER}",
            [key, cut.begins, cut.step],
            "* REPLACE (greatest(step, $3) AS step)",
        )
        arrived = "engine_id = $1 AND kind = 'arrived' AND request >= $2"
        kept.copy("event", arrived, [key, cut.next_request])
        found = kept.rows(
            "event",
            "epoch_ns(ts), request, detail",
            "engine_id = $1 AND kind = 'checkpoint' AND ts BETWEEN make_timestamp_ns($2) AND make_timestamp_ns($3) "
            "ORDER BY ts",
            [key, cut.begins, cut.ends],
        )
        kept.add_events([self._as_found(*row) for row in found])

    def _as_found(self, ts: int, request: int | None, detail: str) -> EventRow:
        return self.engine_id, self.cut.step, ts, "found", request, None, detail, None

    def _requests(self) -> None:
        """Copy the requests that the window names, and those that came in it; drop the events of all others."""
        kept, key, cut = self.kept, self.engine_id, self.cut
        arrival = ", ".join(
            f"CASE WHEN request >= $2 THEN {name} END AS {name}"
            for name in ("arrived_at", "sent_at", "arrived_step")
        )
        named = (
            "SELECT request FROM final.step_request WHERE engine_id = $1 "
            "UNION SELECT request FROM final.event WHERE engine_id = $1 AND request IS NOT NULL"
        )
        where, values = f"engine_id = $1 AND (request >= $2 OR request IN ({named}))", [key, cut.next_request]
        kept.copy_requests(where, values, f"* REPLACE ({arrival})")
        kept.drop_events_of_others(key)

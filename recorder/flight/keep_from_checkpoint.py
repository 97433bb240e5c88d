"""An engine's part of a kept trace that begins with a checkpoint: it is as of a recording that was attached then.

What the call of the checkpoint found becomes events `found`, as the first call of a recording writes them. Everything
that came before is left out, and a request that was there then has no time of arrival. So the order of the calls is
whole, and a replay takes the calls in it.
"""

from __future__ import annotations

import json
from typing import Any

from fdtrace.recorder import schema
from fdtrace.recorder.agent.wire import CallFigures
from fdtrace.recorder.agent.wire_order import AGAIN, LEAVING
from fdtrace.recorder.flight.flight_segments import CutCall, EngineSnapshot
from fdtrace.recorder.flight.kept_parts import EventRow, KeptParts
from fdtrace.recorder.trace.call_order import CHANGES

ENTERED = ("queued", "preallocated", "joined")
"""Events with which a request comes to the queues."""

BEGINS_LATER = "(call > $2 OR (call = $2 AND ts >= make_timestamp_ns($3)))"
"""Whether an event that is dated by call came after the checkpoint. A call that found nothing has the number of the
next one: then only the time tells."""

OF_CALLS = tuple(
    column.name
    for column in schema.STEP.columns
    if column.name
    in (*CallFigures._fields, "schedule_us", "not_admitted", "reserved_output_blocks", "new_token_ratio")
)
"""Columns of a step that say what its call found and did."""


class CheckpointCopy:
    """Copies what an engine did from the checkpoint `cut.call` on."""

    def __init__(self, kept: KeptParts, engine_id: int, cut: EngineSnapshot, call: CutCall) -> None:
        self.kept, self.engine_id, self.cut, self.call = kept, engine_id, cut, call
        self.first_step = self._first_step()

    def copy(self) -> None:
        """Copy all tables of this engine except `engine`."""
        kept, key, call = self.kept, self.engine_id, self.call
        for table in ("step", "step_request", "rank_memory"):
            kept.copy(table, "engine_id = $1 AND step >= $2", [key, self.first_step])
        calls = f"INSERT INTO final.call SELECT * FROM ({kept.calls}) WHERE engine_id = $1 AND call >= $2"
        kept.db.execute(calls, [key, call.call])
        kept.copy("call_request", "engine_id = $1 AND call >= $2", [key, call.call])
        self._forget_earlier_calls()
        fresh = self._events()
        self._requests(fresh)
        begins = "UPDATE final.engine SET started_at = make_timestamp_ns($1) WHERE engine_id = $2"
        kept.db.execute(begins, [call.begins, key])

    def _first_step(self) -> int:
        """The first forward that began after the checkpoint."""
        where = "engine_id = $1 AND ts >= make_timestamp_ns($2)"
        ((first,),) = self.kept.rows("step", "min(step)", where, [self.engine_id, self.call.begins]) or [
            (None,)
        ]
        return self.cut.step if first is None else int(first)

    def _forget_earlier_calls(self) -> None:
        """What calls before the checkpoint found and did is not known of the forwards that still belong to them.

        These are the forwards before the tasks of the first call that handed out some have reached the worker; unless a
        call before it, which handed out nothing, had ended when they began (`collector.forward_calls`).
        """
        rows = self.kept.db.execute(
            "SELECT idle, first_step, epoch_ns(ts) + 1000 * coalesce(schedule_us, 0) FROM final.call "
            "WHERE engine_id = $1 ORDER BY call",
            [self.engine_id],
        ).fetchall()
        entered = next((first_step for idle, first_step, _ in rows if not idle), None)
        idle_from = rows[0][2] if rows and rows[0][0] else None
        columns = ", ".join(f"{name} = NULL" for name in OF_CALLS)
        self.kept.db.execute(
            f"UPDATE final.step SET {columns} WHERE engine_id = $1 AND ($2 IS NULL OR step < $2) "
            "AND ($3 IS NULL OR ts < make_timestamp_ns($3))",
            [self.engine_id, entered, idle_from],
        )

    def _events(self) -> list[int]:
        """Copy the events, and add what the checkpoint found. Returns the requests that came later."""
        kept, key, call = self.kept, self.engine_id, self.call
        dated = [key, call.call, call.begins]
        plain = "engine_id = $1 AND kind NOT IN ('arrived', 'checkpoint')"
        kept.copy("event", f"{plain} AND call IS NULL AND step >= $2", [key, self.first_step])
        kept.copy("event", f"{plain} AND {BEGINS_LATER}", dated)
        later = [row for row in kept.undated_events(key) if self._is_later(row)]
        kept.add_events([row for row in later if row[3] != "arrived"])
        query = f"SELECT DISTINCT request FROM final.event WHERE engine_id = $1 AND kind IN {ENTERED}"
        fresh = [request for (request,) in kept.db.execute(query, [key]).fetchall() if request is not None]
        known = "(request >= $2 OR request IN (SELECT unnest($3::INTEGER[])))"
        kept.copy(
            "event", f"engine_id = $1 AND kind = 'arrived' AND {known}", [key, call.next_request, fresh]
        )
        arrived = {*fresh}
        kept.add_events(
            [
                row
                for row in later
                if row[3] == "arrived" and (row[4] in arrived or row[4] >= call.next_request)
            ]
        )
        self._found()
        return fresh

    def _is_later(self, row: EventRow) -> bool:
        """As BEGINS_LATER."""
        ts, number = row[2], row[7]
        return bool(number > self.call.call or (number == self.call.call and ts >= self.call.begins))

    def _found(self) -> None:
        """Add the events of the checkpoint as the first call of a recording writes them."""
        call = self.call
        where = (
            "engine_id = $1 AND kind = 'checkpoint' AND call = $2 "
            "AND ts BETWEEN make_timestamp_ns($3) AND make_timestamp_ns($4) ORDER BY ts"
        )
        values = [self.engine_id, call.call, call.begins, call.ends]
        found = self.kept.rows("event", "epoch_ns(ts), request, detail", where, values)
        self.kept.add_events([self._as_found(*row) for row in found])

    def _as_found(self, ts: int, request: int | None, text: str) -> EventRow:
        detail: dict[str, Any] = json.loads(text)
        kind, written = "found", text or None
        if detail["place"] in AGAIN:
            kind, written = detail["place"], None
        elif detail["place"] == LEAVING and request is not None:
            self._forget(request, detail["number"])
            request = None
        return self.engine_id, self.first_step, ts, kind, request, None, written, self.call.call

    def _forget(self, request: int, number: int) -> None:
        """A request had left and still held its blocks: a recording that begins there knows it only by a number."""
        self.kept.db.execute(
            "UPDATE final.event SET request = NULL, detail = $1 "
            "WHERE engine_id = $2 AND request = $3 AND kind = 'freed'",
            [json.dumps({"number": number}), self.engine_id, request],
        )

    def _requests(self, fresh: list[int]) -> None:
        """Copy the requests that the window names, and those that came in it; drop the events of all others."""
        kept, key, next_request = self.kept, self.engine_id, self.call.next_request
        early = "request < $2 AND request NOT IN (SELECT unnest($3::INTEGER[]))"
        columns = (
            f"* REPLACE (CASE WHEN {early} THEN NULL ELSE arrived_at END AS arrived_at, "
            f"CASE WHEN {early} THEN NULL ELSE sent_at END AS sent_at, "
            f"CASE WHEN {early} THEN NULL ELSE arrived_step END AS arrived_step)"
        )
        named = (
            "SELECT request FROM final.step_request WHERE engine_id = $1 "
            "UNION SELECT request FROM final.call_request WHERE engine_id = $1 "
            f"UNION SELECT request FROM final.event WHERE engine_id = $1 AND request IS NOT NULL AND kind IN {CHANGES}"
        )
        where, values = (
            f"engine_id = $1 AND (request >= $2 OR request IN ({named}))",
            [key, next_request, fresh],
        )
        kept.copy_requests(where, values, columns)
        kept.drop_events_of_others(key)

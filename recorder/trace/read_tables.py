"""Reads one engine's tables of a trace into numpy columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder import schema
from fdtrace.recorder.schema_tables import Table
from fdtrace.recorder.trace import digest
from fdtrace.recorder.trace.column_values import MISSING, NO_PRIORITY, ColumnArrays
from fdtrace.recorder.trace.initial_state import (
    FOUND_EVENTS,
    InitialRequest,
    StateAtStart,
    found_state,
)
from fdtrace.recorder.trace.recording import (
    Acceptance,
    EngineInfo,
    HandoverCalls,
    HandoverSteps,
    RecordedRow,
    StepDigests,
)

ROW = """
q.kind, q.num_tokens, q.num_computed_tokens, coalesce(q.num_draft_tokens, 0),
coalesce(q.num_accepted_tokens, 0), q.num_blocks
"""
"""The columns of `RecordedRow` after its `request_id`, read from `step_request q`."""

STEP_ROWS = f"""
WITH q AS MATERIALIZED (FROM step_request WHERE engine_id = $1 AND step = $2)
SELECT r.request_id, {ROW} FROM q JOIN (
    SELECT request, request_id FROM request
    WHERE engine_id = $1 AND request BETWEEN (SELECT min(request) FROM q) AND (SELECT max(request) FROM q)
) r USING (request) ORDER BY q.kind DESC, q.request
"""
"""The requests of one step of one engine. The bounds spare it most of a large table `request`."""


def engine_info(row: dict[str, Any]) -> EngineInfo:
    """A row of `engine` as a value. Numbers that the model needs are 0 if they are NULL."""
    names = EngineInfo.__dataclass_fields__
    values = {name: value for name, value in row.items() if name in names and value is not None}
    for name in ("config", "env"):
        values[name] = json.loads(row[name] or "null") or {}
    for name in (
        "max_num_batched_tokens",
        "max_num_seqs",
        "num_speculative_tokens",
        "block_size",
        "num_blocks",
    ):
        values.setdefault(name, 0)
    values.setdefault("max_model_len", 0)
    values.setdefault("version", "")
    return EngineInfo(**values)


class Reader:
    """Reads one engine's columns as numpy arrays."""

    def __init__(self, db: duckdb.DuckDBPyConnection, engine_id: int) -> None:
        self.db, self.engine_id = db, engine_id

    def _numpy(self, query: str) -> dict[str, NDArray[Any]]:
        columns = self.db.execute(query, [self.engine_id]).fetchnumpy()
        return {
            name: np.ma.filled(values) if np.ma.isMaskedArray(values) else values
            for name, values in columns.items()
        }

    @staticmethod
    def _select(table: Table, *skip: str) -> str:
        fields = []
        for column in table.columns:
            if column.name in skip:
                continue
            if column.type == "TIMESTAMP_NS":
                fields.append(f"coalesce(epoch_ns({column.name}), {MISSING}) AS {column.name}")
            elif column.type == "VARCHAR":
                fields.append(f"coalesce({column.name}, '') AS {column.name}")
            else:
                number = "DOUBLE" if column.type == "DOUBLE" else "BIGINT"
                fields.append(f"coalesce({column.name}, {MISSING})::{number} AS {column.name}")
        return ", ".join(fields)

    def requests(self) -> ColumnArrays:
        """The columns of `request`, by number."""
        return self._numpy(
            f"SELECT {self._select(schema.REQUEST, 'engine_id', 'block_hashes', 'priority')}, "
            f"coalesce(priority, {NO_PRIORITY})::BIGINT AS priority FROM request "
            "WHERE engine_id = $1 ORDER BY request"
        )

    def steps(self, after: int = MISSING) -> ColumnArrays:
        """The columns of `step`, for the steps later than `after`, in step order."""
        columns = self._numpy(
            f"SELECT {self._select(schema.STEP, 'engine_id')} FROM step "
            f"WHERE engine_id = $1 AND step > {int(after)}"
        )
        # The rows are usually in step order already. DuckDB takes longer to sort a million rows than to read them.
        steps = columns["step"]
        if (steps[1:] > steps[:-1]).all():
            return columns
        order = np.argsort(steps)
        return {name: values[order] for name, values in columns.items()}

    def acceptance(self, numbers: NDArray[Any]) -> Acceptance:
        """The draft tokens accepted and verified in each decode, ordered by request and step.

        `numbers` are the request numbers of `Recording.requests`.
        """
        decodes = self._numpy(
            "SELECT request, num_accepted_tokens::SMALLINT AS accepted, "
            f"coalesce(num_draft_tokens, {MISSING})::SMALLINT AS drafts FROM step_request "
            "WHERE engine_id = $1 AND kind = 'decode' ORDER BY request, step"
        )
        counts = np.zeros(len(numbers) + 1, np.int64)
        order, number_of = np.unique(decodes["request"], return_counts=True)
        counts[np.searchsorted(numbers, order) + 1] = number_of
        accepted, verified = decodes["accepted"].astype(np.int16), decodes["drafts"].astype(np.int16)
        return Acceptance(accepted, np.cumsum(counts), verified)

    def digests(self) -> StepDigests:
        """The digest of each step's recorded requests, and their tokens."""
        columns = self._numpy(
            f"SELECT step, {digest.SQL} AS digest, sum(num_tokens)::BIGINT AS num_tokens FROM step_request "
            "WHERE engine_id = $1 GROUP BY step ORDER BY step"
        )
        return StepDigests(columns["step"], columns["digest"], columns["num_tokens"])

    def step_rows(self, step: int) -> list[RecordedRow]:
        """The requests of a step, prefills first."""
        return [RecordedRow(*row) for row in self.db.execute(STEP_ROWS, [self.engine_id, step]).fetchall()]

    def event_step(self, numbers: NDArray[Any], kind: str) -> NDArray[np.int64]:
        """The step of the first event of a kind of each request; MISSING if there is none."""
        return self._first_event(numbers, kind, "step")

    def _first_event(self, numbers: NDArray[Any], kind: str, column: str) -> NDArray[np.int64]:
        """The smallest value of a column in the events of a kind of each request; MISSING if there is none."""
        return self._of_each(
            numbers,
            f"SELECT request, min({column}) AS first FROM event WHERE engine_id = $1 AND kind = '{kind}' "
            f"AND request IS NOT NULL AND {column} IS NOT NULL GROUP BY request ORDER BY request",
        )

    def _of_each(self, numbers: NDArray[Any], query: str) -> NDArray[np.int64]:
        """The second column of a query, whose first is `request`, for each request; MISSING if it has no row."""
        found = [*self._numpy(query).values()]
        values = np.full(len(numbers), MISSING, np.int64)
        if len(found[0]):
            values[np.searchsorted(numbers, found[0])] = found[1]
        return values

    def handover(self, numbers: NDArray[Any], *, simulated: bool) -> HandoverSteps:
        """What the prefill and decode roles did with each request."""
        last_ran = self._of_each(
            numbers,
            "SELECT request, max(step) FROM step_request WHERE engine_id = $1 GROUP BY request ORDER BY request",
        )
        kinds = ("preallocated", "joined", "discarded")
        preallocated, joined, discarded = (self.event_step(numbers, kind) for kind in kinds)
        calls = self._handover_calls(numbers) if simulated else None
        return HandoverSteps(preallocated, joined, discarded, last_ran, calls)

    def _handover_calls(self, numbers: NDArray[Any]) -> HandoverCalls | None:
        """The same in calls; None: the trace of an earlier fdtrace, whose events name no calls."""
        last_ran = self._of_each(
            numbers,
            "SELECT q.request, max(c.call) FROM step_request q "
            "JOIN call c ON c.engine_id = q.engine_id AND c.first_step = q.step "
            "WHERE q.engine_id = $1 GROUP BY q.request ORDER BY q.request",
        )
        kinds = ("arrived", "aborted", "preallocated", "joined", "discarded", "finished")
        arrived, aborted, preallocated, joined, discarded, finished = (
            self._first_event(numbers, kind, "call") for kind in kinds
        )
        if (arrived == MISSING).any():
            return None
        query = "SELECT coalesce(max(call + num_calls), 0) FROM call WHERE engine_id = $1"
        ((end,),) = self.db.execute(query, [self.engine_id]).fetchall()
        return HandoverCalls(arrived, aborted, preallocated, joined, discarded, last_ran, finished, int(end))

    def restarts(self, numbers: NDArray[Any]) -> dict[int, tuple[int, ...]]:
        """For each request, the decode forwards before which it was preempted after sampling: `RowScan.restarts`."""
        rows = self.db.execute(
            "WITH ran AS (SELECT request, step, kind = 'decode' AS decodes, num_computed_tokens AS first, "
            "num_computed_tokens + num_tokens AS past, num_accepted_tokens AS accepted, "
            "lag(decodes) OVER w AS decoded, lag(past) OVER w AS before FROM step_request "
            "WHERE engine_id = $1 WINDOW w AS (PARTITION BY request ORDER BY step)) "
            "SELECT request, coalesce(num_prompt_tokens, 0), decodes, first, past, accepted "
            "FROM ran JOIN request r USING (request) WHERE r.engine_id = $1 AND request IN "
            "(SELECT request FROM ran WHERE NOT decodes AND (decoded OR first < before)) ORDER BY request, step",
            [self.engine_id],
        ).fetchall()
        return {
            int(np.searchsorted(numbers, request)): tuple(restarts(prompt, [row[2:] for row in ran]))
            for (request, prompt), ran in groupby(rows, key=itemgetter(0, 1))
        }

    def block_hashes(self) -> NDArray[Any]:
        """The hashes of each request's full prompt blocks, an array each, None if the trace has none."""
        query = "SELECT block_hashes FROM request WHERE engine_id = $1 ORDER BY request"
        hashes: Any = self.db.execute(query, [self.engine_id]).fetchnumpy()["block_hashes"]
        lists: NDArray[Any] = np.ma.getdata(hashes).copy()
        lists[np.ma.getmaskarray(hashes)] = None
        return lists

    def found(self) -> StateAtStart:
        """What events say about the requests that were there when the recording began, in the order of these events."""
        rows = self.db.execute(
            "SELECT f.request, r.num_prompt_tokens, f.detail "
            f"FROM (SELECT request, ts, detail {FOUND_EVENTS}) f "
            "LEFT JOIN request r ON r.engine_id = $1 AND r.request = f.request "
            "ORDER BY f.ts NULLS FIRST, f.request",
            [self.engine_id],
        ).fetchall()
        return found_state(rows)

    def initial(self, found: StateAtStart) -> tuple[InitialRequest, ...]:
        """Requests that ran when the recording began, as they were `found`, in that order.

        If that is not complete, also those that arrived before and have computed tokens in their first recorded step:
        then in the order in which they arrived.
        """
        rows = self._first_rows("ORDER BY q.request")
        first_steps = {row[0]: row[5] for row in rows}
        running = [replace(one, first_step=first_steps.get(one.request, MISSING)) for one in found.running]
        if found.is_complete:
            return tuple(running)
        ran = {row[0]: InitialRequest(*row) for row in rows if row[1] > 0}
        ran |= {one.request: one for one in running}
        return tuple(ran[number] for number in sorted(ran))

    def queued(self, found: StateAtStart) -> tuple[InitialRequest, ...]:
        """Requests that waited when the recording began, as they were `found`.

        If that is not complete: those that arrived before and began with a prefill after the first recorded step, or in
        it with no token computed; in the order in which they began.
        """
        if found.is_complete:
            return found.waiting
        running = {request.request for request in found.running}
        rows = self._first_rows(
            "HAVING arg_min(q.kind, q.step) = 'prefill' "
            "AND (min(q.step) > (SELECT min(step) FROM step WHERE engine_id = $1) "
            "OR arg_min(q.num_computed_tokens, q.step) = 0) "
            "ORDER BY min(q.step), q.request"
        )
        return tuple(InitialRequest(*row) for row in rows if row[0] not in running)

    def _first_rows(self, clauses: str) -> list[Any]:
        return self.db.execute(
            "SELECT q.request, arg_min(q.num_computed_tokens, q.step), arg_min(coalesce(q.num_blocks, 0), q.step), "
            "arg_min(q.kind, q.step) = 'decode', "
            f"coalesce(arg_min(q.num_computed_tokens, q.step) FILTER (WHERE q.kind = 'decode'), {MISSING}), "
            "min(q.step) "
            "FROM step_request q JOIN request r USING (engine_id, request) "
            f"WHERE q.engine_id = $1 AND r.arrived_step IS NULL GROUP BY q.request {clauses}",
            [self.engine_id],
        ).fetchall()


def restarts(prompt: int, rows: Iterable[tuple[bool, int, int, int]]) -> Iterator[int]:
    """Indices of decode forwards (from 0) before which a request sampled a token and was then prefilled again.

    `rows` are the request's rows in step order: whether it decoded, the position of its first token, the position
    after its last token, and its accepted draft tokens.
    """
    forwards, total, end, sampled = 0, prompt, 0, False
    for decodes, first, past, accepted in rows:
        if not decodes and first < end and sampled:
            yield forwards
        forwards += decodes
        sampled = decodes or past >= total
        total = first + 1 + accepted if decodes else total + sampled
        end = total if decodes else past

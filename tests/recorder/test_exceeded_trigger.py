"""The trigger `exceeded` of a flight recorder and the view `exceeded` name the same steps, by the same excess."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import duckdb
import numpy as np
import pytest

from fdtrace.flights.step_conditions import RunWatcher, check_triggers
from fdtrace.recorder import schema
from fdtrace.recorder.collector.engine import Decoded
from fdtrace.recorder.collector.tables import columns_of, create, insert
from fdtrace.recorder.flight.drafter_excess import DrafterExcess
from fdtrace.recorder.schema_tables import Table
from fdtrace.recorder.trace.column_values import ColumnArrays

NUM_STEPS = 60
NAMED_FIRST = {"cache_read_budget": 1, "padded": 2, "drafter": 3}
"""The other limits of the view come before these."""


def row_of(table: Table, **values: Any) -> tuple[Any, ...]:
    return tuple(values.get(column.name) for column in table.columns)


def some(rng: Random, most: int, none: float = 0.3) -> int | None:
    return None if rng.random() < none else rng.randint(1, most)


class DrawnSteps:
    """Random steps of a random engine, and events of its drafter; calls and steps are numbered apart."""

    def __init__(self, seed: int) -> None:
        rng = Random(seed)
        limits = ("max_num_batched_tokens", "max_profiled_tokens", "num_max_dispatch_tokens_per_rank")
        self.engine: dict[str, Any] = {name: some(rng, 40) for name in limits}
        self.engine["name"] = rng.choice(["vllm", "transformers", "fastdeploy"])
        row = row_of(schema.ENGINE, engine_id=0, **self.engine)
        self.tables = {schema.ENGINE: [row], schema.STEP: [], schema.EVENT: [], schema.CALL: []}
        for step in range(NUM_STEPS):
            tokens = rng.randint(1, 48)
            self.tables[schema.STEP].append(
                row_of(
                    schema.STEP, engine_id=0, step=step, ts=step, num_tokens=tokens,
                    num_prefill_tokens=rng.choice([0, 0, tokens, None]), num_predicted_tokens=some(rng, 60),
                    num_cache_read_tokens=some(rng, 60), cache_read_budget=some(rng, 60),
                )
            )  # fmt: skip
            first_step = None if rng.random() < 0.1 and step < NUM_STEPS - 1 else step
            self.tables[schema.CALL].append(
                row_of(schema.CALL, engine_id=0, call=100 + step, num_calls=1, first_step=first_step)
            )
            if rng.random() < 0.2:
                limit, more, call = rng.randint(8, 20), rng.randint(1, 9), rng.choice([100 + step, None])
                detail = {
                    "num_tokens": limit - 2,
                    "num_padded_tokens": limit + more,
                    "limit_tokens": limit,
                    "call": call,
                }
                # Where the call is known, the event's own step may be one too early.
                own = step - 1 if call is not None and first_step is not None and step else step
                row = row_of(
                    schema.EVENT, engine_id=0, step=own, kind="exceeded", reason="drafter",
                    detail=json.dumps(detail),
                )  # fmt: skip
                self.tables[schema.EVENT].append(row)

    def by_view(self) -> dict[int, int]:
        """Excess by step, over the limit that the view names first."""
        with duckdb.connect() as db:
            for table, rows in self.tables.items():
                create(db, table.name, table)
                if rows:
                    insert(db, table.name, table, columns_of(table, rows))
            view = next(view for view in schema.VIEWS if view.name == "exceeded")
            found = db.execute(f"SELECT step, limit_name, excess_tokens FROM ({view.query})").fetchall()
        found.sort(key=lambda row: (row[0], NAMED_FIRST.get(row[1], 0)), reverse=True)
        return {step: excess for step, _, excess in found}

    def decoded(self) -> list[Decoded]:
        """As a collector decodes them, in two publications. The events come first: workers write them before."""
        steps, calls = (columns_of(table, self.tables[table]) for table in (schema.STEP, schema.CALL))
        half = NUM_STEPS // 2
        return [
            Decoded(
                steps=[cut(steps, part)], calls=[cut(calls, part)],
                events=self.tables[schema.EVENT] if part.start == 0 else [],
            )
            for part in (slice(0, half), slice(half, NUM_STEPS))
        ]  # fmt: skip


def cut(columns: ColumnArrays, part: slice) -> ColumnArrays:
    return {name: values[part] for name, values in columns.items()}


@pytest.mark.parametrize("seed", range(20))
def test_trigger_and_view_name_the_same_steps(seed: int) -> None:
    steps = DrawnSteps(seed)
    (watcher,) = check_triggers(["exceeded"])
    assert isinstance(watcher, RunWatcher)
    drafters = DrafterExcess()
    found: dict[int, int] = {}
    for decoded in steps.decoded():
        drafters.add_column(0, decoded)
        saved, drafters = drafters.state(), DrafterExcess()
        drafters.restore(json.loads(json.dumps(saved)))
        (columns,) = decoded.steps
        holds, values = watcher.holds(steps.engine, columns)
        at = np.flatnonzero(holds)
        found.update(zip(columns["step"][at].tolist(), values[at].astype(int).tolist(), strict=True))
    assert found == steps.by_view()

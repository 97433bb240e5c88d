"""Requests as columns, and numbers in few bytes: what is read back is what was given."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdtrace.replayer import BUILTIN
from fdtrace.replayer.history.step_columns import StepColumns
from fdtrace.replayer.model.events import Resumed
from fdtrace.replayer.model.request import AcceptancePlan
from fdtrace.replayer.recorded.compact_numbers import BLOCK, CompactTable, extended, smallest
from fdtrace.replayer.replay import step_log
from fdtrace.replayer.replay.replay_history import history_of
from fdtrace.replayer.replay.workload_replay import Replay
from fdtrace.replayer.workload.from_case import workload_from_case
from fdtrace.replayer.workload.request_columns import RequestColumns, entry_of_request, requests_with
from fdtrace.replayer.workload.under_settings import _changed
from fdtrace.replayer.workload.workload import WorkRequest


def key(block: int) -> int:
    return block


PLAIN = WorkRequest("r1", 3, 40, 7, np.array([1, 4, 0], np.uint8))
ODD = [
    PLAIN,
    WorkRequest("", 3, 1, 1),
    WorkRequest("r11", 4, 2**40, 2**70, (1, 2), max_tokens=-1, target=0),
    WorkRequest("1", 5, 40, 7, np.array([300], np.int16), abort_after=9, priority=-3, think=12),
    WorkRequest("\udc80ü", 5, 40, 7, drafts=np.array([2, 2], np.int16), restarts=(1, 1), after_idle=True),
    WorkRequest(
        "r", 6, 40, 7, block_key=key, discarded=True, send_after=4, join_after=2, group=1, on_its_way=8
    ),
    WorkRequest("last", 7, 40, 7, np.array([3], np.uint8), resumed=Resumed(PLAIN.arrived(), 4, 1)),
]


def same(one: WorkRequest | None, other: WorkRequest | None) -> bool:
    """Whether two requests are equal, arrays by their values."""
    assert one is not None
    assert other is not None
    values = zip_longest(one._replace(sums=None), other._replace(sums=None))
    return all(type(a) is type(b) and np.array_equal(a, b) for a, b in values)  # type: ignore[arg-type]


def test_requests_are_read_back_as_they_were_given() -> None:
    columns = RequestColumns(iter(ODD))
    assert len(columns) == len(ODD)
    for i, (one, other) in enumerate(zip_longest(columns, ODD)):
        assert same(one, other), other
        assert same(columns[i], other), other
    assert same(columns[-1], ODD[-1])
    assert [request.request_id for request in columns[1:3]] == ["", "r11"]
    with pytest.raises(IndexError):
        columns[len(ODD)]
    plain = RequestColumns([PLAIN] * 3)
    assert all(same(request, PLAIN) for request in plain)
    assert len(RequestColumns([])) == 0


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 254), max_size=6), st.integers(1, 60)), min_size=1, max_size=8
    ),
    st.integers(0, 9),
)
def test_running_sums_that_are_computed_for_many_say_the_same_as_those_of_one(
    given_requests: list[tuple[list[int], int]], forwards: int
) -> None:
    requests = [
        WorkRequest(f"r{i}", i, 1, output, np.array(accepts, np.uint8))
        for i, (accepts, output) in enumerate(given_requests)
    ]
    for request, plain in zip(RequestColumns(requests), requests, strict=True):
        assert (request.sums is not None and len(request.sums) > 1) == (len(plain.accepts) > 0)
        event = request.arrived()
        assert event.accepts is not None
        plan = AcceptancePlan(event.accepts, plain.num_output_tokens, event.sums)
        expected = AcceptancePlan(plain.accepts, plain.num_output_tokens)
        assert [plan.after(n) for n in range(10)] == [expected.after(n) for n in range(10)]
        assert plan.after_each(forwards, 3).tolist() == expected.after_each(forwards, 3).tolist()
        assert [plan.reaching(n) for n in range(70)] == [expected.reaching(n) for n in range(70)]


def test_other_acceptances_have_no_running_sums_of_the_earlier_ones() -> None:
    (request,) = RequestColumns([PLAIN])
    assert request.sums is not None
    assert _changed(request, accepts=(9,)).sums is None
    assert _changed(request, max_tokens=3).sums is request.sums


def test_columns_may_have_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, length in (("BLOCK", 3), ("MADE_AT_ONCE", 2)):
        monkeypatch.setattr(f"fdtrace.replayer.workload.request_columns.{name}", length)
    for one, other in zip_longest(RequestColumns(ODD * 2), ODD * 2):
        assert same(one, other), other


@pytest.mark.parametrize("requests", [ODD, RequestColumns(ODD)], ids=["objects", "columns"])
def test_requests_are_found_by_id_and_by_what_they_have(requests: list[WorkRequest]) -> None:
    assert [entry_of_request(requests, request.request_id) for request in ODD] == list(range(len(ODD)))
    assert entry_of_request(requests, "11") is None
    for name in ("target", "abort_after", "max_tokens", "num_output_tokens"):
        expected = [i for i, request in enumerate(ODD) if getattr(request, name) is not None]
        found = list(requests_with(requests, name))
        assert [i for i, _ in found] == expected, name
        assert all(same(request, ODD[i]) for i, request in found)


def test_a_table_gives_its_columns_back_beyond_a_block() -> None:
    table, rows = CompactTable(3), [(i, -i, 2**62 if i == 5 else 1) for i in range(2 * BLOCK + 7)]
    for row in rows:
        table.append(row)
    for i, expected in enumerate(zip(*rows, strict=True)):
        assert table.column(i).dtype == np.int64
        assert table.column(i).tolist() == list(expected)
    assert CompactTable(2).column(1).tolist() == []


def test_a_very_long_history_reads_as_a_short_one_does(
    case_of: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Replay(workload_from_case(case_of("speculative")), BUILTIN["original"])
    run.run()
    plain = history_of(run)
    monkeypatch.setattr(step_log, "MANY_STEPS", 1)  # of no effect on a compiled model
    small = history_of(run)
    again = pickle.loads(pickle.dumps(small.columns))
    for columns in (small.columns, again):
        assert list(columns) == list(plain.columns)
        for name, values in plain.columns.items():
            assert columns[name].dtype == values.dtype, name
            assert columns[name].tolist() == values.tolist(), name
    assert small.outcome == plain.outcome


def test_a_small_column_is_made_once_while_somebody_holds_it() -> None:
    columns = StepColumns(
        {"a": np.array([1, 0], np.int8), "b": np.array([1, 0], np.int8)}, {"b": np.array(["x", "y"])}
    )
    held = columns["a"]
    assert columns["a"] is held
    assert held.dtype == np.int64
    assert columns["b"].tolist() == ["y", "x"]
    more = columns.with_column("c", np.array([1, 2]))
    assert {name: more[name].tolist() for name in more} == {"a": [1, 0], "b": ["y", "x"], "c": [1, 2]}


def test_numbers_take_what_they_need_and_widen() -> None:
    assert smallest(np.array([-128, 127])).dtype == np.int8
    assert smallest(np.array([-129, 127])).dtype == np.int16
    assert smallest(np.array([0, 2**31])).dtype == np.int64
    assert smallest(np.array([], np.int64)).tolist() == []
    numbers = array("i", [1])
    assert extended(numbers, (2, 3)) is numbers
    wide = extended(numbers, (4, 2**31, 5))
    assert (wide.typecode, wide.tolist()) == ("q", [1, 2, 3, 4, 2**31, 5])

"""Recorded instances of the prefill and decode roles tell when requests got blocks, joined, were discarded and sent."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.trace import Trace, open_trace
from tests.fastdeploy.conftest import Stand, logged_rows
from tests.stands import logged, rows_of

KINDS = ("preallocated", "joined", "discarded")


def did(output: str) -> list[tuple[str, str, int]]:
    """What the stand-in did beside the tokens, each with the forwards that had run by then."""
    told = json.loads([line for line in output.splitlines() if line.startswith("{")][-1])["did"]
    return [(kind, request_id, forwards) for kind, request_id, forwards in told]


def events(trace: Trace, kinds: tuple[str, ...] = KINDS) -> list[dict[str, Any]]:
    names = ", ".join(f"'{kind}'" for kind in kinds)
    return trace.rows(
        f"SELECT kind, request_id, step, reason FROM event JOIN request USING (engine_id, request) "
        f"WHERE kind IN ({names}) ORDER BY ts"
    )


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("blocks", [(), ("--blocks", "60")], ids=["400", "60"])
def test_each_event_is_of_the_step_that_it_came_before(
    stand: Stand, role: str, blocks: tuple[str, ...]
) -> None:
    stand, done = stand.recorded("--inline", "--role", role, *blocks)
    assert done.returncode == 0, done.stderr
    own = [row for row in did(done.stdout) if row[0] in KINDS]
    assert {kind for kind, _, _ in own} == set(KINDS)
    with open_trace(stand.trace) as trace:
        found = [(row["kind"], row["request_id"], row["step"]) for row in events(trace)]
        assert found == own
        assert [engine["role"] for engine in trace.engines()] == [role]


@pytest.mark.parametrize("options", [("--inline",), (), ("--drafts", "0")], ids=" ".join)
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_steps_of_a_role_equal_what_the_worker_ran(stand: Stand, role: str, options: tuple[str, ...]) -> None:
    stand, done = stand.recorded(*options, "--role", role)
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        assert rows_of(trace) == logged_rows(stand.lines())
        assert [(row["kind"], row["request_id"]) for row in events(trace)] == [
            row[:2] for row in did(done.stdout) if row[0] in KINDS
        ]
        (kinds,) = trace.rows("SELECT list(DISTINCT kind) AS kinds FROM step_request")
        assert kinds["kinds"] == [role]


def test_a_prefill_instance_ends_a_request_when_its_cache_is_sent(stand: Stand) -> None:
    stand, done = stand.recorded("--inline", "--role", "prefill", "--blocks", "60")
    sent = {name: forwards - 1 for kind, name, forwards in did(done.stdout) if kind == "finished"}
    with open_trace(stand.trace) as trace:
        ended = {row["request_id"]: row for row in events(trace, ("finished",))}
        assert {name: row["step"] for name, row in ended.items() if row["reason"] != "error"} == sent
        recording = trace.recording()
        handover = recording.details.handover
        assert handover is not None
        later = recording.details.endings.finished_step - handover.last_ran
        assert later[(handover.last_ran != MISSING)].max() > 0


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_what_is_discarded_ends_with_an_error(stand: Stand, role: str) -> None:
    stand, done = stand.recorded("--inline", "--role", role)
    names = {name for kind, name, _ in did(done.stdout) if kind == "discarded"}
    with open_trace(stand.trace) as trace:
        failed = trace.rows("SELECT request_id, num_output_tokens FROM request WHERE finish_reason = 'error'")
        assert {row["request_id"] for row in failed} == names
        assert {row["num_output_tokens"] for row in failed} == {0}


def test_what_a_decode_instance_preempts_ends_with_what_it_had_made(stand: Stand) -> None:
    stand, done = stand.recorded("--inline", "--role", "decode", "--blocks", "60")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        rows = trace.rows(
            "SELECT num_output_tokens AS made, (SELECT 1 + sum(1 + num_accepted_tokens) FROM step_request s "
            "WHERE s.engine_id = r.engine_id AND s.request = r.request) AS ran "
            "FROM request r JOIN event e USING (engine_id, request) WHERE e.kind = 'preempted'"
        )
        assert rows
        assert all(row["made"] == (row["ran"] or 1) for row in rows)


def test_an_instance_of_no_role_hands_nothing_over(stand: Stand) -> None:
    stand, done = stand.recorded("--inline")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        assert events(trace) == []
        assert trace.recording().details.handover is None


def test_handover_is_read_by_entry_of_the_requests(stand: Stand) -> None:
    stand, done = stand.recorded("--inline", "--role", "decode")
    with open_trace(stand.trace) as trace:
        recording = trace.recording()
        handover = recording.details.handover
        assert handover is not None
        names = recording.requests["request_id"].tolist()
        for kind in KINDS:
            own = {name: step for what, name, step in did(done.stdout) if what == kind}
            assert getattr(handover, kind).tolist() == [own.get(name, MISSING) for name in names]
        assert np.array_equal(handover.last_ran == MISSING, handover.joined == MISSING)


class TwoInstances(Stand):
    """Both instances of a deployment, started by one process. Prefill's worker runs a while before decode starts, and
    its engine schedules only when decode has ended.
    """

    def command(self, *options: str) -> list[str]:
        started, log = self.directory / "started", self.directory / "prefill"
        prefill = super().command(
            *options, "--role", "prefill", "--log", str(log), "--begin-when", str(started)
        )
        decode = super().command(*options, "--role", "decode")
        return ["sh", "-c", f"{shlex.join(prefill)} & sleep 2; {shlex.join(decode)}; touch {started}; wait"]


def test_each_of_two_instances_under_one_parent_gets_its_own_worker(stand: Stand) -> None:
    """A worker runs without tasks until its engine schedules, and meanwhile only the other engine is known."""
    both = TwoInstances(**vars(stand))
    done = both.collect("--requests", "20")
    assert done.returncode == 0, done.stderr
    logs = {"prefill": Path(f"{both.directory}/prefill.0"), "decode": both.log_of()}
    with open_trace(both.trace) as trace:
        assert sorted(engine["role"] for engine in trace.engines()) == sorted(logs)
        for engine in trace.engines():
            own = logged_rows(logged(logs[engine["role"]]))
            assert len(own) > 10
            assert rows_of(trace, engine["engine_id"]) == own

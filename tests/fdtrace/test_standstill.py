"""An engine that stands still: every command says since when, what waits and for what; and nothing wrong of no step."""

from __future__ import annotations

import json
import shutil
import time
from array import array
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fdtrace.cli import main
from fdtrace.recorder.agent import ring, wire
from fdtrace.recorder.agent.writer import KeyframeRow, Writer
from fdtrace.recorder.collector.process import Collector
from fdtrace.recorder.session import Session
from fdtrace.recorder.trace.column_values import MISSING, NO_PRIORITY
from fdtrace.recorder.trace.standstill import Standstill, standstill
from fdtrace.recorder.trace.trace import open_trace

SECOND = 1_000_000_000
BEGUN = 1_700_000_000 * SECOND
SIZE = 1 << 18
Captured = pytest.CaptureFixture[str]

STUCK = wire.CallFigures(
    token_budget=64, num_scheduled_tokens=0, num_running=0, num_running_decodes=0, num_waiting=2, num_deferred=0,
    num_preempted=0, num_aborted=0, num_free_blocks=19, num_blocks=20, num_missing_blocks=1, head=0,
)  # fmt: skip


class Recorded:
    """A recording of an engine that is written here, and the trace that the collector makes of it."""

    def __init__(self, path: Path, name: str = "fastdeploy", **more: Any) -> None:
        self.path, self.call, self.step = path, 0, 0
        self.session = Session.create(path)
        page = ring.create(f"{self.session.dir}/1-1.ring", wire.PROTOCOL, BEGUN, 4, SIZE)
        engine = {
            "name": name,
            "version": "1",
            "pid": 1,
            "host": "h",
            "role": "mixed",
            "num_blocks": 20,
            **more,
        }
        sizes = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "block_size": 4, "max_model_len": 512}
        row = KeyframeRow("r1", 8, 9, 8, 2, 0, 0)
        self.writer = Writer(page, 4, SIZE, lambda: {**engine, **sizes}, lambda: [(0, row)])
        self.writer.request("r0\x1b[31m", -1, 80, 9)
        self.writer.boundary()

    def idle(
        self, seconds: float, calls: int, figures: wire.CallFigures = STUCK, reason: str = "blocks"
    ) -> None:
        """So many equal calls from that second to that many hundredths later."""
        for i in range(calls):
            ts = BEGUN + round((seconds + i / 100) * SECOND)
            self.writer.schedule(self.call, ts, 100, reason, figures, wire.EMPTY)
            self.call += 1

    def ran(self, seconds: float, forward_s: float = 0.02) -> None:
        """A call that handed something out, and its forward."""
        ts, did = BEGUN + round(seconds * SECOND), STUCK._replace(num_chunks=1)
        self.writer.schedule(self.call, ts, 100, "", did)
        one = memoryview(array("h", [1]))
        memory, us = wire.AllocatorFigures(), round(forward_s * 1e6)
        self.writer.forward(self.step, self.call, ts, us, -1, memory, b"", b"", one, one)
        self.call += 1
        self.step += 1

    def end(self) -> Path:
        self.writer.close()
        Collector(self.session).finish("detach")
        return self.path


def found(path: Path) -> Standstill | None:
    with open_trace(path) as trace:
        (engine,) = trace.engines()
        return standstill(trace, engine)


def test_a_forward_of_an_hour_is_looked_at_too(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path / "slow.duckdb")
    recorded.ran(0.5, forward_s=2000.0)
    assert found(recorded.end()) is None


@pytest.fixture
def hung(tmp_path: Path) -> Path:
    """No step: from the first call on a request lacks a block."""
    recorded = Recorded(tmp_path / "hung.duckdb")
    recorded.idle(0, 300)
    return recorded.end()


def test_info_says_since_when_and_why_nothing_moves(hung: Path, capsys: Captured) -> None:
    assert main(["info", str(hung)]) == 0
    said = capsys.readouterr().out
    assert "steps      0: no forward ran" in said
    assert "calls      300 of schedule(), 300 of them handed out nothing" in said
    assert "2023-11-14 22:13:20.000 UTC (call 0; 300 calls of schedule() in 3.0 s handed out nothing" in said
    assert (
        "request r0\\x1b[31m at the head of the queue lacks 1 KV blocks: it wants 20, and 19 are free" in said
    )
    assert "exceeded" not in said
    assert main(["info", "--json", str(hung)]) == 0
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    assert engine["calls"] == {"calls": 300, "idle": 300}
    still = engine["standstill"]
    assert (still["num_calls"], still["not_admitted"], still["num_missing_blocks"]) == (300, "blocks", 1)
    assert (still["since"], still["until"]) == ("2023-11-14T22:13:20.000Z", "2023-11-14T22:13:22.990Z")


def test_a_replay_of_no_step_says_what_there_is_and_no_figure(hung: Path, capsys: Captured) -> None:
    assert main(["replay", str(hung)]) == 0
    said = capsys.readouterr().out
    assert "lacks 1 KV blocks" in said
    assert "no forward ran" in said
    assert "exceed" not in said
    assert "none over" not in said
    assert main(["replay", "--json", str(hung)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["num_steps"], answer["formulas"]) == (0, [])
    assert answer["standstill"]["num_calls"] == 300


def test_no_formula_holds_on_a_trace_without_a_step(hung: Path, capsys: Captured) -> None:
    assert main(["check", str(hung), "-f", "pr7499"]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "holds no step to check" in said.err
    assert "lacks 1 KV blocks" in said.err


def test_a_picture_of_no_step_is_refused(hung: Path, tmp_path: Path, capsys: Captured) -> None:
    picture = tmp_path / "a.svg"
    assert main(["replay", str(hung), "--svg", str(picture)]) == 3
    assert "holds no step to draw" in capsys.readouterr().err
    assert not picture.exists()


def test_an_engine_that_stops_after_steps_stands_still_since_its_last_one(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path / "t.duckdb")
    recorded.idle(0, 10)
    recorded.ran(1.0)
    recorded.ran(2.0, forward_s=0.5)
    recorded.idle(2.6, 50, STUCK._replace(num_waiting=1))
    recorded.idle(3.1, 70)
    still = found(recorded.end())
    assert still is not None
    assert (still.num_calls, still.call, still.num_waiting) == (120, 12, 2)
    assert still.since == BEGUN + round(2.6 * SECOND)
    assert still.sentence.startswith("nothing has moved since 2023-11-14 22:13:22.600 UTC")


@pytest.mark.parametrize(
    ("after", "calls"), [(2.1, 50), (2.6, 110)], ids=["half a second", "less than two of its forwards"]
)
def test_an_engine_that_only_waits_for_its_forward_does_not(tmp_path: Path, after: float, calls: int) -> None:
    recorded = Recorded(tmp_path / "t.duckdb")
    recorded.ran(1.0)
    recorded.ran(2.0, forward_s=0.02 if after < 2.5 else 0.6)
    recorded.idle(after, calls)
    assert found(recorded.end()) is None


def test_a_run_of_calls_that_began_before_the_last_forward_is_not_counted(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path / "t.duckdb")
    recorded.idle(0, 400)
    path = recorded.end()
    with duckdb.connect(str(path)) as db:
        db.execute("INSERT INTO step (engine_id, step, ts, forward_us, num_tokens) "
                   f"VALUES (0, 0, make_timestamp_ns({BEGUN + SECOND}), 20000, 5)")  # fmt: skip
    still = found(path)
    assert still is not None
    assert still.num_calls is None
    assert still.since == BEGUN + SECOND + 20_000_000


REASONS = {
    "the token budget is 0: 8 running requests get no block and no chunk": (
        STUCK._replace(token_budget=0, num_running=8, num_waiting=0, head=-1), "",
    ),
    "each of 2 waiting requests is deferred: not ready to be scheduled": (STUCK._replace(num_deferred=2), "other"),
    "wants 30 KV blocks, and requests have 20 in all: it never fits": (STUCK._replace(num_missing_blocks=11), "blocks"),
    "wants 30, and 19 are free": (STUCK._replace(num_missing_blocks=11, num_running=1), "blocks"),
    "waits for more KV blocks than are free (19 of 20)": (STUCK._replace(num_missing_blocks=-1), "blocks"),
    "waits for a slot: 8 requests run": (STUCK._replace(num_running=8), "slots"),
    "does not fit the token budget of 64": (STUCK, "budget"),
    "at the head of the queue is not ready to be scheduled": (STUCK, "other"),
    "6 requests hold their blocks and do not join the running queue": (
        STUCK._replace(num_waiting=0, num_preallocated=6, head=-1), "",
    ),
    "no forward ran a token of 1 running request": (STUCK._replace(num_waiting=0, num_running=1, head=-1), ""),
}  # fmt: skip


@pytest.mark.parametrize("text", REASONS)
def test_each_reason_is_said_in_words(tmp_path: Path, text: str) -> None:
    recorded = Recorded(tmp_path / "t.duckdb")
    recorded.idle(0, 20, *REASONS[text])
    still = found(recorded.end())
    assert still is not None
    assert text in still.because


def test_one_of_vllms_blocks_is_its_own(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path / "t.duckdb", "vllm")
    recorded.idle(0, 20)
    still = found(recorded.end())
    assert still is not None
    assert "wants 20 KV blocks, and requests have 19 in all: it never fits" in still.because


def test_a_trace_of_schema_1_opens_and_its_calls_are_told_as_not_recorded(
    trace: Path, tmp_path: Path, capsys: Captured
) -> None:
    old = tmp_path / "old.duckdb"
    shutil.copy(trace, old)
    with duckdb.connect(str(old)) as db:
        db.execute("DROP TABLE call")
        db.execute("UPDATE trace SET schema_version = 1")
    assert main(["info", str(old)]) == 0
    assert "calls      not recorded: schema 1" in capsys.readouterr().out
    assert main(["replay", "--json", str(old), "-f", "original"]) == 0
    assert json.loads(capsys.readouterr().out)["standstill"] is None
    assert main(["check", str(old), "-f", "pr7499", "--max-exceeded", "1000"]) == 0


def test_a_trace_of_schema_3_opens_and_what_came_later_is_null(
    trace: Path, tmp_path: Path, capsys: Captured
) -> None:
    old = tmp_path / "old.duckdb"
    shutil.copy(trace, old)
    with duckdb.connect(str(old)) as db:
        for table, column in (
            *((table, name) for table in ("step", "call") for name in ("input_budget", "num_input_tokens")),
            *(("request", name) for name in ("sent_at", "priority")),
        ):
            db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        db.execute("UPDATE trace SET schema_version = 3")
    query = "SELECT count(input_budget_left), count(token_budget_left) > 0 FROM budget"
    assert main(["sql", str(old), query, "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0,true"
    assert main(["replay", "--json", str(old), "-f", "original"]) == 0
    with open_trace(old) as opened:
        requests = opened.recording().requests
        assert set(requests["sent_at"].tolist()) == {MISSING}
        assert set(requests["priority"].tolist()) == {NO_PRIORITY}


def test_the_head_of_a_live_screen_says_it_first() -> None:
    now = time.time_ns()
    fields: dict[str, Any] = dict.fromkeys(Standstill.__dataclass_fields__)
    still = Standstill(**{
        **fields, "since": now, "until": now, "call": 0, "num_calls": 9, "num_running": 8, "token_budget": 0,
        "any_step": True, "engine_name": "fastdeploy",
    })  # fmt: skip
    assert still.short.startswith("NOTHING MOVES since ")
    assert still.short.endswith("the token budget is 0: 8 running requests get no block and no chunk")


@pytest.mark.parametrize(
    ("engine", "reason", "said"),
    [
        ("fastdeploy", "preemption", "waits, as a call that preempts admits nothing"),
        ("vllm", "preemption", "waits, as a call that preempts admits nothing"),
        ("transformers", "preemption", "no request is admitted until a running one ends"),
        ("fastdeploy", "slots", "waits for a slot: 3 requests run"),
        ("vllm", "slots", "3 requests run, of max_num_seqs"),
        ("transformers", "slots", "a batch takes max_requests_per_batch requests"),
    ],
)
def test_each_engine_says_in_its_own_terms_what_the_head_waits_for(
    engine: str, reason: str, said: str, tmp_path: Path
) -> None:
    recorded = Recorded(tmp_path / "own.duckdb", engine)
    recorded.idle(0, 300, STUCK._replace(num_running=3), reason)
    still = found(recorded.end())
    assert still is not None
    assert still.because.endswith(said)
    call = "schedule_batch()" if engine == "transformers" else "schedule()"
    assert f"300 calls of {call} in 3.0 s" in still.sentence


def test_no_budget_is_told_without_fastdeploys_blocks_where_decodes_wait_for_tokens(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path / "none.duckdb", "transformers")
    recorded.idle(0, 300, STUCK._replace(num_running=3, token_budget=0), "budget")
    still = found(recorded.end())
    assert still is not None
    assert still.because == "the token budget is 0: 3 running requests get no token"

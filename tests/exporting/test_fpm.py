"""`fdtrace export --to fpm`: each step's ForwardPassMetrics are the sums of what the trace holds, in the real form."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from statistics import pvariance
from types import ModuleType
from typing import Any

import duckdb
import msgspec
import pytest

from fdtrace.cli import main

Captured = pytest.CaptureFixture[str]
DEFINITION: dict[str, dict[str, Any]] = {
    "ForwardPassMetrics": {
        "version": int,
        "worker_id": str,
        "dp_rank": int,
        "counter_id": int,
        "wall_time": float,
        "scheduled_requests": "ScheduledRequestMetrics",
        "queued_requests": "QueuedRequestMetrics",
    },
    "ScheduledRequestMetrics": {
        "num_prefill_requests": int,
        "sum_prefill_tokens": int,
        "var_prefill_length": float,
        "sum_prefill_kv_tokens": int,
        "num_decode_requests": int,
        "sum_decode_kv_tokens": int,
        "var_decode_kv_tokens": float,
    },
    "QueuedRequestMetrics": {
        "num_prefill_requests": int,
        "sum_prefill_tokens": int,
        "var_prefill_length": float,
        "num_decode_requests": int,
        "sum_decode_kv_tokens": int,
        "var_decode_kv_tokens": float,
    },
}
"""Fields of version 1, in their order: `dynamo/common/forward_pass_metrics.py` of ai-dynamo 1.6.1."""


def real_definition() -> ModuleType | None:
    """Dynamo's own module, where `make test-dynamo` has installed it, without its package: that needs an engine."""
    package = importlib.util.find_spec("dynamo")
    for folder in (package.submodule_search_locations or ()) if package else ():
        path = Path(folder) / "common" / "forward_pass_metrics.py"
        if path.exists():
            spec = importlib.util.spec_from_file_location("forward_pass_metrics_of_dynamo", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # there msgspec looks up the types that its annotations name
            spec.loader.exec_module(module)
            return module
    return None


REAL = real_definition()


def written(name: str) -> type[msgspec.Struct]:
    """A structure of `DEFINITION`, which takes its fields alone, and all of them."""
    fields = [
        (field, written(kind) if isinstance(kind, str) else kind) for field, kind in DEFINITION[name].items()
    ]
    return msgspec.defstruct(name, fields, forbid_unknown_fields=True)


def exported(trace: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    assert main(["export", str(trace), "--to", "fpm", "-o", str(out), *options]) == 0
    packed = out.read_bytes()
    text = gzip.decompress(packed) if out.suffix == ".gz" else packed
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def lines(timed: Path) -> list[dict[str, Any]]:
    return exported(timed, timed.with_name("fpm.jsonl.gz"))


def rows_of(path: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as db:
        return db.execute(query).fetchall()


def spread(values: list[int]) -> Any:
    return pytest.approx(pvariance(values) if values else 0.0, rel=1e-9, abs=1e-6)


def test_each_step_is_a_record_with_the_sums_of_its_requests(
    timed: Path, lines: list[dict[str, Any]]
) -> None:
    ran: dict[int, dict[str, list[tuple[int, int, int]]]] = defaultdict(lambda: defaultdict(list))
    for step, kind, *figures in rows_of(
        timed,
        "SELECT step, kind, num_tokens, num_computed_tokens, num_prompt_tokens FROM step_request "
        "JOIN request USING (engine_id, request)",
    ):
        ran[step][kind].append((figures[0], figures[1], figures[2]))
    records = [line["event"]["fpm"] for line in lines]
    assert [record["counter_id"] for record in records] == sorted(ran)
    for record in records:
        prefills, decodes = (ran[record["counter_id"]][kind] for kind in ("prefill", "decode"))
        assert record["scheduled_requests"] == {
            "num_prefill_requests": len(prefills),
            "sum_prefill_tokens": sum(tokens for tokens, _, _ in prefills),
            "var_prefill_length": spread([prompt for _, _, prompt in prefills]),
            "sum_prefill_kv_tokens": sum(computed for _, computed, _ in prefills),
            "num_decode_requests": len(decodes),
            "sum_decode_kv_tokens": sum(computed for _, computed, _ in decodes),
            "var_decode_kv_tokens": spread([computed for _, computed, _ in decodes]),
        }


def test_the_queue_is_what_the_engine_counted(timed: Path, lines: list[dict[str, Any]]) -> None:
    """View `waiting`, which finds waits in another way, names the same requests.

    FastDeploy, and its model, put a preempted request back into the queue only once the worker has left it.
    """
    waits = rows_of(
        timed,
        "SELECT kind, since_step, coalesce(until_step, 1 << 40), num_prompt_tokens FROM waiting JOIN request "
        "USING (engine_id, request) WHERE kind IN ('queued', 'preempted') AND num_steps > 0",
    )
    counted = dict(rows_of(timed, "SELECT step, num_waiting FROM step"))
    just_preempted = Counter(row[0] for row in rows_of(timed, "SELECT step FROM preemption"))
    kinds: Counter[str] = Counter()
    for record in (line["event"]["fpm"] for line in lines):
        step, queue = record["counter_id"], record["queued_requests"]
        there = [(kind, prompt) for kind, since, until, prompt in waits if since <= step < until]
        prompts = [prompt for kind, prompt in there if kind == "queued"]
        assert queue["num_prefill_requests"] == len(prompts)
        assert queue["sum_prefill_tokens"] == sum(prompts)
        assert queue["var_prefill_length"] == spread(prompts)
        assert queue["num_decode_requests"] == len(there) - len(prompts)
        assert len(there) - just_preempted[step] == counted[step]
        kinds += Counter(kind for kind, _ in there)
    assert min(kinds["queued"], kinds["preempted"]) > 5


def test_a_preempted_request_waits_with_its_tokens_so_far(timed: Path, lines: list[dict[str, Any]]) -> None:
    at, request, prompt = rows_of(
        timed,
        "SELECT step, request, num_prompt_tokens FROM preemption JOIN request USING (engine_id, request) "
        "ORDER BY step LIMIT 1",
    )[0]
    outputs = rows_of(
        timed,
        "SELECT sum(CASE WHEN kind = 'decode' THEN 1 + num_accepted_tokens "
        f"WHEN num_computed_tokens + num_tokens = {prompt} THEN 1 ELSE 0 END)::BIGINT FROM step_request "
        f"WHERE request = {request} AND step < {at}",
    )[0][0]
    queue = next(
        line["event"]["fpm"]["queued_requests"] for line in lines if line["event"]["fpm"]["counter_id"] == at
    )
    assert queue["num_decode_requests"] == 1
    assert queue["sum_decode_kv_tokens"] == prompt + outputs


def test_wall_time_goes_up_to_the_next_call(timed: Path, lines: list[dict[str, Any]]) -> None:
    records = [line["event"]["fpm"] for line in lines]
    assert {record["wall_time"] for record in records[:-1]} == {0.02}
    assert records[-1]["wall_time"] == 0.0183, "after the last step, the call and the forward"
    begin = rows_of(timed, "SELECT min(epoch_ns(ts)) - 300000 FROM step")[0][0]
    assert [line["event"]["observed_at_unix_ms"] for line in lines[:2]] == [
        begin // 1_000_000 + 20,
        begin // 1_000_000 + 40,
    ]
    assert [line["timestamp"] for line in lines[:3]] == [0, 20, 40]


def test_an_idle_engine_takes_no_time(timed: Path, tmp_path: Path) -> None:
    trace = tmp_path / "idle.duckdb"
    trace.write_bytes(timed.read_bytes())
    with duckdb.connect(str(trace)) as db:
        db.execute("UPDATE step SET num_running = 0, num_waiting = 0 WHERE step = 5")
        db.execute("UPDATE step SET forward_us = NULL WHERE step = (SELECT max(step) FROM step)")
    records = [line["event"]["fpm"] for line in exported(trace, tmp_path / "fpm.jsonl")]
    assert [record["wall_time"] for record in records[4:7]] == [0.02, 0.0183, 0.02]
    assert records[-1]["wall_time"] == 0


def test_the_form_is_the_real_one(lines: list[dict[str, Any]]) -> None:
    kind = written("ForwardPassMetrics")
    for line in lines:
        assert line.keys() == {"timestamp", "event"}
        event = line["event"]
        assert event["schema"] == "dynamo.fpm.trace.v1"
        assert event["source"].keys() == {"namespace", "component", "producer_id"}
        packed = msgspec.msgpack.encode(msgspec.convert(event["fpm"], kind, strict=True))
        assert msgspec.to_builtins(msgspec.msgpack.decode(packed, type=kind)) == event["fpm"]
        assert event["fpm"]["version"] == 1


@pytest.mark.skipif(REAL is None, reason="Dynamo is not here: make test-dynamo")
def test_dynamo_itself_takes_it(lines: list[dict[str, Any]]) -> None:
    assert REAL is not None
    for name, fields in DEFINITION.items():
        declared = msgspec.structs.fields(getattr(REAL, name))
        kinds = {field.name: field.type for field in declared}
        assert {
            field: kind if isinstance(kind, type) else getattr(REAL, kind) for field, kind in fields.items()
        } == kinds
        assert list(kinds) == list(fields)
    assert REAL.FPM_VERSION == 1
    for line in lines:
        metrics = msgspec.convert(line["event"]["fpm"], REAL.ForwardPassMetrics, strict=True)
        assert REAL.decode(REAL.encode(metrics)) == metrics
        assert msgspec.to_builtins(metrics) == line["event"]["fpm"]


def test_the_tokens_of_each_request_stand_beside_the_sums(timed: Path, tmp_path: Path) -> None:
    for line in exported(timed, tmp_path / "fpm.jsonl", "--request-lengths"):
        scheduled = line["event"]["fpm"]["scheduled_requests"]
        extends, pasts = scheduled["extend_lengths"], scheduled["past_kv_lengths"]
        count = scheduled["num_prefill_requests"]
        assert len(extends) == len(pasts) == count + scheduled["num_decode_requests"]
        assert sum(extends[:count]) == scheduled["sum_prefill_tokens"], "prefills come first"
        assert sum(pasts[:count]) == scheduled["sum_prefill_kv_tokens"]
        assert sum(pasts[count:]) == scheduled["sum_decode_kv_tokens"]


def test_a_trace_without_times_says_so(simulated: Path, tmp_path: Path, capsys: Captured) -> None:
    lines = exported(simulated, tmp_path / "fpm.jsonl", "--step-ms", "5")
    assert {line["event"]["fpm"]["wall_time"] for line in lines} == {0.005}
    assert "the trace has no times: wall_time is 5 ms" in capsys.readouterr().err


def test_a_queue_that_cannot_be_told_is_said(timed: Path, tmp_path: Path, capsys: Captured) -> None:
    trace = tmp_path / "lost.duckdb"
    trace.write_bytes(timed.read_bytes())
    with duckdb.connect(str(trace)) as db:
        db.execute("UPDATE step SET num_waiting = num_waiting + 1 WHERE step IN (3, 4)")
    exported(trace, tmp_path / "fpm.jsonl")
    assert "after 5 steps the engine counted other waiting requests" in capsys.readouterr().err, (
        "3 by preemptions"
    )

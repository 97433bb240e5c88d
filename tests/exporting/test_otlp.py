"""`fdtrace export --to otlp`: a real receiver of OTLP over HTTP gets the spans, decoded by OpenTelemetry's protos."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from fdtrace.cli import main
from tests.exporting.conftest import BEGAN

Captured = pytest.CaptureFixture[str]
OF_VLLM = {
    *("gen_ai.request.id", "gen_ai.usage.prompt_tokens", "gen_ai.usage.completion_tokens"),
    *("gen_ai.latency.time_in_queue", "gen_ai.latency.time_to_first_token", "gen_ai.latency.e2e"),
    *("gen_ai.latency.time_in_model_prefill", "gen_ai.latency.time_in_model_decode"),
    "gen_ai.latency.time_in_model_inference",
}
"""`SpanAttributes` in `vllm/tracing/utils.py`: names that the conventions do not have."""
OF_STEPS = {
    *("step.id", "step.ts_start_ns", "step.ts_end_ns", "step.duration_us", "queue.running_depth"),
    *("queue.waiting_depth", "batch.num_prefill_reqs", "batch.num_decode_reqs", "batch.scheduled_tokens"),
    *("batch.prefill_tokens", "batch.decode_tokens", "batch.num_finished", "batch.num_preempted"),
    *("kv.usage_gpu_ratio", "kv.blocks_total_gpu", "kv.blocks_free_gpu"),
}
"""Those of `step.BATCH_SUMMARY` in inference-sim's vLLM, by its STEP_TRACING.md."""


class Receiver:
    """What came to `/v1/traces`."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: list[str] = []

    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@contextmanager
def receiving(status: int = 200) -> Iterator[tuple[Receiver, str]]:
    receiver = Receiver(status)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/x-protobuf"
            receiver.paths.append(self.path)
            if receiver.status == 200:
                receiver.requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(receiver.status)
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield receiver, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def finished(timed: Path) -> Path:
    """The trace with the times at which requests finished: 2 ms after their last step."""
    path = timed.with_name("finished.duckdb")
    path.write_bytes(timed.read_bytes())
    with duckdb.connect(str(path)) as db:
        db.execute(
            "UPDATE request SET finished_at = make_timestamp_ns(m.ns) FROM (SELECT request AS of, "
            f"{BEGAN} + max(step) * 20000000 + 20300000 AS ns FROM step_request GROUP BY request) m WHERE request = of"
        )
        db.execute("UPDATE request SET finish_reason = 'error' WHERE request = 1")
        db.execute("UPDATE request SET finish_reason = NULL WHERE request = 2")
    return path


@pytest.fixture(scope="module")
def received(finished: Path) -> Receiver:
    with receiving() as (receiver, url):
        assert main(["export", str(finished), "--to", "otlp", "--endpoint", url]) == 0
    return receiver


def attributes(holder: Any) -> dict[str, Any]:
    values = {}
    for attribute in holder.attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind)
        values[attribute.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return values


def rows_of(path: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as db:
        return db.execute(query).fetchall()


def test_each_step_is_an_event_with_its_figures(finished: Path, received: Receiver) -> None:
    spans = [span for span in received.spans() if span.name == "scheduler_steps"]
    events = [event for span in spans for event in span.events]
    names = {
        "step.id": "step",
        "queue.running_depth": "num_running",
        "queue.waiting_depth": "num_waiting",
        "batch.scheduled_tokens": "num_scheduled_tokens",
        "batch.prefill_tokens": "num_prefill_tokens",
        "batch.decode_tokens": "num_decode_tokens",
        "batch.num_preempted": "num_preempted",
        "kv.blocks_free_gpu": "num_free_blocks",
        "kv.blocks_total_gpu": "num_blocks",
        "fdtrace.num_tokens": "num_tokens",
        "fdtrace.token_budget": "token_budget",
    }
    steps = rows_of(finished, f"SELECT {', '.join(names.values())} FROM step ORDER BY step")
    assert len(steps) > 150
    assert [tuple(attributes(event)[name] for name in names) for event in events] == steps
    assert all(event.name == "step.BATCH_SUMMARY" for event in events)
    for event, step in zip(events, steps, strict=True):
        figures = attributes(event)
        assert figures.keys() - OF_STEPS <= {
            *("fdtrace.num_tokens", "fdtrace.token_budget", "fdtrace.reserved_bytes", "fdtrace.excess_tokens")
        }
        begin = int(BEGAN) + 20_000_000 * step[0] + 300_000
        assert (figures["step.ts_start_ns"], figures["step.ts_end_ns"]) == (begin, begin + 18_000_000)
        assert (event.time_unix_nano, figures["step.duration_us"]) == (begin + 18_000_000, 18_000)
        assert figures["kv.usage_gpu_ratio"] == pytest.approx(1 - step[7] / step[8])
    assert [len(span.events) for span in spans[:-1]] == [100] * (len(spans) - 1)
    first, last = attributes(spans[0].events[0]), attributes(spans[0].events[-1])
    assert (spans[0].start_time_unix_nano, spans[0].end_time_unix_nano) == (
        first["step.ts_start_ns"],
        last["step.ts_end_ns"],
    )
    requests = rows_of(
        finished,
        "SELECT count(*) FILTER (kind = 'prefill'), count(*) FILTER (kind = 'decode') FROM step_request GROUP BY step "
        "ORDER BY step",
    )
    counts = [
        (attributes(e)["batch.num_prefill_reqs"], attributes(e)["batch.num_decode_reqs"]) for e in events
    ]
    assert counts == requests
    excess = {attributes(e)["step.id"]: attributes(e).get("fdtrace.excess_tokens") for e in events}
    exceeded = rows_of(finished, "SELECT step, excess_tokens FROM exceeded")
    assert exceeded
    assert {step: tokens for step, tokens in excess.items() if tokens is not None} == dict(exceeded)
    ends = rows_of(finished, "SELECT count(*) FROM event WHERE kind = 'finished'")[0][0]
    assert sum(attributes(e)["batch.num_finished"] for e in events) == ends > 0


def request_spans(received: Receiver) -> dict[str, Any]:
    """The spans of requests, by request."""
    spans = (span for span in received.spans() if span.name == "llm_request")
    return {attributes(span)["gen_ai.request.id"]: span for span in spans}


def test_each_request_that_finished_is_a_span(finished: Path, received: Receiver) -> None:
    spans = request_spans(received)
    rows = rows_of(
        finished,
        "SELECT request_id, epoch_ns(arrived_at), epoch_ns(finished_at), num_prompt_tokens, num_output_tokens, "
        "finish_reason, first, last, token FROM request JOIN (SELECT request, min(step) AS first, max(step) AS last, "
        "min(step) FILTER (kind = 'decode') AS token FROM step_request GROUP BY request) USING (request) "
        "WHERE finish_reason IS NOT NULL",
    )
    assert spans.keys() == {row[0] for row in rows}
    kinds = received.spans()[0]
    for name, arrived, ended, prompt, output, reason, first, last, _ in rows:
        span, known = spans[name], attributes(spans[name])
        assert span.kind == kinds.SPAN_KIND_SERVER
        assert (span.start_time_unix_nano, span.end_time_unix_nano) == (arrived, ended)
        assert known["gen_ai.usage.input_tokens"] == known["gen_ai.usage.prompt_tokens"] == prompt
        assert known["gen_ai.usage.output_tokens"] == known["gen_ai.usage.completion_tokens"] == output
        assert known["gen_ai.response.finish_reasons"] == [reason]
        begin = int(BEGAN) + 20_000_000 * first + 300_000
        end = int(BEGAN) + 20_000_000 * last + 18_300_000
        expected = {
            "time_in_queue": begin - arrived,
            "time_in_model_inference": end - begin,
            "e2e": ended - arrived,
        }
        for part, ns in expected.items():
            assert known[f"gen_ai.latency.{part}"] == pytest.approx(ns / 1e9)
        assert known["gen_ai.latency.time_to_first_token"] == pytest.approx(
            known["gen_ai.latency.time_in_queue"] + known["gen_ai.latency.time_in_model_prefill"]
        )
        assert known["gen_ai.latency.time_in_model_inference"] == pytest.approx(
            known["gen_ai.latency.time_in_model_prefill"] + known["gen_ai.latency.time_in_model_decode"]
        )
        assert (span.status.code == span.status.STATUS_CODE_ERROR) == (reason == "error")
    assert any(row[5] == "error" for row in rows)


def test_the_first_token_comes_with_the_last_chunk_of_the_prompt(finished: Path, received: Receiver) -> None:
    spans = request_spans(received)
    rows = rows_of(
        finished,
        "SELECT request_id, epoch_ns(arrived_at), token FROM request JOIN (SELECT request, max(step) AS token FROM "
        "step_request WHERE kind = 'prefill' GROUP BY request) USING (request) WHERE finish_reason IS NOT NULL AND "
        "request NOT IN (SELECT request FROM preemption)",
    )
    assert len(rows) > 5
    for name, arrived, step in rows:
        first = int(BEGAN) + 20_000_000 * step + 18_300_000
        known = attributes(spans[name])
        assert known["gen_ai.latency.time_to_first_token"] == pytest.approx((first - arrived) / 1e9)


def test_the_names_exist(received: Receiver) -> None:
    convention = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    used = {name for span in received.spans() for name in attributes(span)}
    assert {name for name in used if name.startswith("gen_ai.")} - convention <= OF_VLLM
    assert {"gen_ai.usage.input_tokens", "gen_ai.response.finish_reasons"} <= used & convention
    assert all(name.startswith(("gen_ai.", "fdtrace.")) for name in used)
    assert set(received.paths) == {"/v1/traces"}
    resource = attributes(received.requests[0].resource_spans[0].resource)
    assert resource["service.name"] == "fastdeploy"


def test_spans_sent_again_have_the_same_ids(finished: Path, received: Receiver) -> None:
    with receiving() as (again, url):
        assert main(["export", str(finished), "--to", "otlp", "--endpoint", f"{url}/v1/traces"]) == 0
    ids = [(span.trace_id, span.span_id) for span in received.spans()]
    assert [(span.trace_id, span.span_id) for span in again.spans()] == ids
    assert len(set(ids)) == len(ids)


def test_a_file_holds_the_same(finished: Path, received: Receiver, tmp_path: Path) -> None:
    out = tmp_path / "spans.json"
    assert main(["export", str(finished), "--to", "otlp", "-o", str(out)]) == 0
    written = [json.loads(line) for line in out.read_text().splitlines()]
    sent = [MessageToDict(request, use_integers_for_enums=True) for request in received.requests]
    for request, message in zip(sent, received.requests, strict=True):
        spans = [span for r in request["resourceSpans"] for s in r["scopeSpans"] for span in s["spans"]]
        raw = [span for r in message.resource_spans for s in r.scope_spans for span in s.spans]
        for span, ids in zip(spans, raw, strict=True):
            span["traceId"], span["spanId"] = ids.trace_id.hex(), ids.span_id.hex()
    assert written == sent, "ids are hexadecimal, as OTLP's JSON has them; all else is protobuf's JSON"


def test_what_is_refused(finished: Path, simulated: Path, tmp_path: Path, capsys: Captured) -> None:
    wrong = {
        "would write nowhere": [str(finished)],
        "both to a file and to a collector": [
            str(finished),
            "--endpoint",
            "http://x",
            "-o",
            str(tmp_path / "f"),
        ],
        "--endpoint is 'localhost:4318'": [str(finished), "--endpoint", "localhost:4318"],
        "has no times": [str(simulated), "-o", str(tmp_path / "f")],
    }
    for message, options in wrong.items():
        assert main(["export", *options, "--to", "otlp"]) == 2
        assert message in capsys.readouterr().err
    assert main(["export", str(finished), "--to", "azure", "--endpoint", "http://x"]) == 2
    assert "takes no --endpoint" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_collector_that_refuses_is_an_error(finished: Path, capsys: Captured) -> None:
    with receiving(400) as (_, url):
        assert main(["export", str(finished), "--to", "otlp", "--endpoint", url]) == 2
    said = capsys.readouterr().err
    assert "did not take the spans" in said
    assert "400" in said
    assert "spans to" not in said


def test_nothing_is_sent_unasked(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    with receiving() as (receiver, url):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        assert main(["export", str(finished), "--to", "otlp", "-o", str(tmp_path / "spans.json")]) == 0
        assert main(["export", str(finished), "--to", "otlp"]) == 2
    assert not receiver.paths
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert main(["export", str(finished), "--to", "otlp", "-o", str(tmp_path / "none.json")]) == 2
    assert "OTEL_SDK_DISABLED is set" in capsys.readouterr().err

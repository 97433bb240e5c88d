"""Makes spans by OpenTelemetry's SDK, and gives them to a collector or a file in batches. Needs extra `otlp`."""

from __future__ import annotations

import base64
import json
import logging
import random
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any, Protocol

from fdtrace.recorder import __version__
from fdtrace.recorder.errors import UsageError

try:
    from google.protobuf.json_format import MessageToDict
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON
    from opentelemetry.trace import SpanKind, Status, StatusCode
except ImportError:
    raise UsageError(
        "--to otlp needs OpenTelemetry's packages",
        why="this Python has none",
        hint="pip install 'fdtrace[otlp]'",
    ) from None

if TYPE_CHECKING:
    from fdtrace.exporting.otlp_spans import OtlpSpan

BATCH = 2048
"""Spans and events of one request to a collector: about a megabyte."""
SECONDS = 10
"""For one request to a collector, tries included."""
MOST_EVENTS = 1 << 10
LONGEST_MESSAGE = 300


class SpanSink(Protocol):
    """Where spans go."""

    def put(self, batch: Sequence[ReadableSpan]) -> None:
        """Take some spans. UsageError if they cannot be taken."""


class CollectorSink:
    """A collector that takes OTLP over HTTP. `OTEL_EXPORTER_OTLP_HEADERS` and `…_CERTIFICATE` apply, as everywhere."""

    def __init__(self, url: str) -> None:
        """`url`: where the collector takes spans."""
        self.url = url
        self._exporter = OTLPSpanExporter(endpoint=url, timeout=SECONDS)

    def put(self, batch: Sequence[ReadableSpan]) -> None:
        """As `SpanSink`."""
        with _Messages() as logged:
            taken = self._exporter.export(batch) is SpanExportResult.SUCCESS
        if not taken:
            raise UsageError(
                f"{self.url} did not take the spans",
                why=" … ".join(logged.texts) or "the exporter does not say why",
                hint="is it a collector that takes OTLP over HTTP? its usual port is 4318",
            )


class FileSink:
    """A file of OTLP's JSON, a request a line, as the collector's file exporter writes it."""

    def __init__(self, file: IO[str]) -> None:
        """`file`: open for writing."""
        self._file = file

    def put(self, batch: Sequence[ReadableSpan]) -> None:
        """As `SpanSink`."""
        request = MessageToDict(encode_spans(batch), use_integers_for_enums=True)
        for resource in request["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    for name in (
                        "traceId",
                        "spanId",
                    ):  # protobuf's JSON writes bytes as base64, OTLP's these as hex
                        span[name] = base64.b64decode(span[name]).hex()
        self._file.write(json.dumps(request, separators=(",", ":")) + "\n")


class SpanSender:
    """Makes the SDK's spans and hands them on. Spans of a trace that is sent again have the same ids."""

    def __init__(self, engine: dict[str, Any], sink: SpanSink) -> None:
        """Args:
        engine: the row of the engine that they are of.
        sink: where they go.
        """
        self.count = 0
        self._sink = sink
        self._ended = _Ended()
        identity = f"{engine['host']} {engine['pid']} {engine['started_at']} {engine['engine_id']}"
        provider = TracerProvider(
            resource=Resource.create(_resource(engine)),
            sampler=ALWAYS_ON,
            shutdown_on_exit=False,
            id_generator=_Ids(identity),
            span_limits=SpanLimits(max_events=MOST_EVENTS),
        )
        provider.add_span_processor(self._ended)
        self._tracer = provider.get_tracer("fdtrace", __version__)

    def send(self, spans: Iterable[OtlpSpan]) -> None:
        """Send all spans. UsageError if they are not taken."""
        size = 0
        for span in spans:
            self._make(span)
            size += 1 + len(span.events)
            if size >= BATCH:
                self._hand_on()
                size = 0
        self._hand_on()

    def _make(self, span: OtlpSpan) -> None:
        kind = SpanKind.SERVER if span.is_server else SpanKind.INTERNAL
        made = self._tracer.start_span(
            span.name, Context(), kind, dict(span.attributes), start_time=span.begin_ns
        )
        if not made.is_recording():
            raise UsageError(
                "OpenTelemetry makes no spans here",
                why="OTEL_SDK_DISABLED is set",
                hint="unset OTEL_SDK_DISABLED",
            )
        for event in span.events:
            made.add_event(event.name, dict(event.attributes), event.ns)
        if span.error:
            made.set_status(Status(StatusCode.ERROR, span.error))
        made.end(span.end_ns)

    def _hand_on(self) -> None:
        if self._ended.spans:
            self._sink.put(self._ended.spans)
            self.count += len(self._ended.spans)
            self._ended.spans = []


def _resource(engine: dict[str, Any]) -> dict[str, str | int]:
    values = {
        "service.name": engine["name"],
        "service.version": engine["version"],
        "service.instance.id": f"{engine['host'] or ''}:{engine['pid'] or 0}",
        "host.name": engine["host"],
        "process.pid": engine["pid"],
        "fdtrace.engine_id": engine["engine_id"],
        "fdtrace.dp_rank": engine["dp_rank"],
        "fdtrace.max_num_batched_tokens": engine["max_num_batched_tokens"],
    }
    return {name: value for name, value in values.items() if value is not None}


class _Ended(SpanProcessor):
    """Keeps the spans that ended."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


class _Ids(IdGenerator):
    """Ids that follow from what is sent."""

    def __init__(self, identity: str) -> None:
        self._chance = random.Random(identity)

    def generate_span_id(self) -> int:
        return self._chance.randrange(1, 1 << 64)

    def generate_trace_id(self) -> int:
        return self._chance.randrange(1, 1 << 128)


class _Messages(logging.Handler):
    """Stores the first and the last message that OpenTelemetry logs. The terminal shows none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._logger = logging.getLogger("opentelemetry")

    def emit(self, record: logging.LogRecord) -> None:
        self.texts = [*self.texts[:1], record.getMessage()[:LONGEST_MESSAGE]]

    def __enter__(self) -> _Messages:
        self._propagates = self._logger.propagate
        self._logger.propagate = False
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagates

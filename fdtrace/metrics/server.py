"""Answers Prometheus with the metrics of a recording in progress, read from its trace when somebody asks.

Between two requests it does nothing, and the recorded server is never asked: the trace has everything.
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from fdtrace.metrics import names
from fdtrace.metrics.names import METRICS, Metric
from fdtrace.metrics.sums import RecordingSums, Sample
from fdtrace.recorder.errors import TraceError, UsageError
from fdtrace.recorder.trace.trace import open_trace
from fdtrace.recorder.trace_paths import parts_directory

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

    from fdtrace.recorder.supervise import Supervisor

LOOPBACK = "127.0.0.1"

QUERY_MEMORY = 1 << 30
"""Bytes that the queries of one answer may use."""


def address_of(text: str) -> tuple[str, int]:
    """The host and the port in `text`: `9100`, `0.0.0.0:9100`, `[::1]:9100`. Without a host, the loopback.

    Raises:
        UsageError: it is no address.
    """
    match = re.fullmatch(r"(?:(\[[0-9a-fA-F:.]+\]|[^\[\]:]+):)?(\d{1,5})", text)
    if match is None or int(match[2]) > 65535:
        raise UsageError(
            f"--metrics {text} is no address", hint="give a port, or HOST:PORT, as 127.0.0.1:9100"
        )
    return (match[1] or LOOPBACK).strip("[]"), int(match[2])


class MetricsServer:
    """The metrics of one recording. `prometheus_client` calls `collect`; only one thread reads the trace at a time.

    Args:
        url: where it answers.
    """

    def __init__(self) -> None:
        self.url = ""
        self._sums = RecordingSums()
        self._lock = threading.Lock()
        self.output: Path | None = None
        self.supervisor: Supervisor | None = None

    def follow(self, output: Path, supervisor: Supervisor) -> None:
        """From now on, answer with the metrics of the recording to `output`, which `supervisor`'s process collects."""
        self.output, self.supervisor = output, supervisor

    def end(self) -> None:
        """Wait for an answer that is being made; there is none after it.

        The threads of `prometheus_client` end with the process. If one is in DuckDB's code then, it aborts the process.
        """
        with self._lock:
            self.output = None

    def collect(self) -> Iterable[Family]:
        """The metrics as they are now. If the trace cannot be read, only what the processes themselves say."""
        with self._lock:
            output, supervisor = self.output, self.supervisor
            if output is None or supervisor is None:
                return []
            try:
                with open_trace(output, memory=QUERY_MEMORY) as trace:
                    samples = [*self._sums.samples(trace), (names.READ_ERROR, (), 0.0)]
            except TraceError:
                samples = [(names.READ_ERROR, (), 1.0)]
            return [*_families([*samples, *_of_processes(output, supervisor)])]


def _of_processes(output: Path, supervisor: Supervisor) -> Iterator[Sample]:
    yield names.TRACE_BYTES, (), float(_bytes_of(output))
    yield names.COLLECTOR_RESTARTS, (), float(supervisor.restarts)
    own = psutil.Process().cpu_times()
    yield names.OWN_CPU, (), own.user + own.system
    try:
        process = psutil.Process(supervisor.process.pid)
        times, memory = process.cpu_times(), process.memory_info().rss
    except psutil.Error:
        return  # it was just killed
    yield names.COLLECTOR_CPU, (), times.user + times.system
    yield names.COLLECTOR_MEMORY, (), float(memory)


@contextmanager
def serving(address: str) -> Iterator[MetricsServer]:
    """Within the `with` block, answer at an address with metrics.

    Raises:
        UsageError: `prometheus-client` is not installed; or the address is none, is in use, or is of another machine.
    """
    host, port = address_of(address)
    prometheus = _prometheus_client()
    metrics = MetricsServer()
    registry = prometheus.CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    try:
        server, thread = prometheus.start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise UsageError(
            f"metrics cannot be served at {address}",
            why=error.strerror or str(error),
            hint="give another --metrics",
        ) from None
    shown = f"[{host}]" if ":" in host else host
    metrics.url = f"http://{shown}:{server.server_port}/metrics"
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        metrics.end()


def _prometheus_client() -> Any:
    try:
        import prometheus_client
    except ImportError:
        raise UsageError(
            "--metrics needs the package prometheus-client",
            why="it is not installed in this Python",
            hint="pip install 'fdtrace[metrics]'",
        ) from None
    return prometheus_client


def _families(samples: list[Sample]) -> Iterator[Family]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    values: dict[Metric, list[tuple[tuple[str, ...], float]]] = defaultdict(list)
    for metric, labels, value in samples:
        values[metric].append((labels, value))
    for metric in METRICS:
        if metric in values:
            kind = CounterMetricFamily if metric.counter else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for labels, value in values[metric]:
                family.add_metric(labels, value)
            yield family


def _bytes_of(output: Path) -> int:
    """The size of the trace and of its parts. Parts may go while they are counted."""
    total = 0
    for path in (output, *_parts(output)):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def _parts(output: Path) -> list[Path]:
    try:
        return list(parts_directory(output).iterdir())
    except OSError:
        return []

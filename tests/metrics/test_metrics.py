"""The metrics of a recording in progress: equal to what its trace says, and answered over HTTP."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fdtrace.cli import main
from fdtrace.metrics import names, server, sums
from fdtrace.metrics.server import MetricsServer, address_of, serving
from fdtrace.metrics.sums import AllocatorGrowth, RecordingSums, Sample
from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.trace import Trace, open_trace
from tests.recorder.helpers import (
    ENGINE,
    ROOT,
    armed_environment,
    collected,
    finish,
    pump,
    query,
    start_engine,
)
from tests.replayer.test_deployments import tables_of

Values = dict[tuple[str, tuple[str, ...]], float]
Exported = dict[tuple[str, tuple[tuple[str, str], ...]], float]
STEPS = ("fdtrace_steps_total", (("engine_id", "0"),))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, MetricsServer]]:
    """A recording in parts: its engine has ended, everything is published, and there is no final file yet."""
    path = tmp_path_factory.mktemp("live") / "t.duckdb"
    with collected(path) as (session, supervisor):
        metrics = MetricsServer()
        metrics.follow(path, supervisor)
        start_engine("--steps", 300, env=armed_environment(session)).communicate(timeout=900)
        pump(supervisor, lambda: exported(metrics).get(STEPS) == 300)
        yield path, metrics
        finish(supervisor)


def values_of(samples: list[Sample]) -> Values:
    return {(metric.name, labels): value for metric, labels, value in samples}


def exported(metrics: MetricsServer) -> Exported:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }


def test_the_metrics_of_a_recording_in_progress_are_its_traces_sums(live: tuple[Path, MetricsServer]) -> None:
    path, metrics = live
    shown, engine = exported(metrics), (("engine_id", "0"),)
    with open_trace(path) as trace:
        row = trace.rows(
            "SELECT count(*) AS steps, sum(num_prefill_tokens) AS prefill, sum(num_decode_tokens) AS decode, "
            "sum(num_preempted) AS preempted, sum(greatest(token_budget - num_scheduled_tokens, 0)) AS unused FROM step"
        )[0]
        exceeded = trace.rows(
            "SELECT limit_name, count(*) AS n, sum(excess_tokens) AS tokens FROM exceeded GROUP BY 1"
        )
        refused = trace.rows(
            "SELECT not_admitted, sum(num_calls) AS n FROM call WHERE head IS NOT NULL GROUP BY 1"
        )
    assert shown["fdtrace_steps_total", engine] == row["steps"] == 300
    assert shown["fdtrace_tokens_total", (*engine, ("kind", "prefill"))] == row["prefill"] > 0
    assert shown["fdtrace_tokens_total", (*engine, ("kind", "decode"))] == row["decode"] > 0
    assert shown["fdtrace_preemptions_total", engine] == row["preempted"]
    assert shown["fdtrace_unused_budget_tokens_total", engine] == row["unused"]
    assert exceeded
    assert refused
    for of in exceeded:
        labels = (*engine, ("limit", of["limit_name"]))
        assert shown["fdtrace_exceeded_steps_total", labels] == of["n"] > 0
        assert shown["fdtrace_excess_tokens_total", labels] == of["tokens"] > 0
    for of in refused:
        assert shown["fdtrace_not_admitted_calls_total", (*engine, ("reason", of["not_admitted"]))] == of["n"]
    assert shown["fdtrace_read_error", ()] == 0
    assert shown["fdtrace_trace_bytes", ()] > path.stat().st_size
    assert shown["fdtrace_collector_resident_bytes", ()] > 1 << 20


def test_sums_are_continued_over_settled_rows(
    live: tuple[Path, MetricsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = live
    with open_trace(path) as trace:
        at_once = values_of([*RecordingSums().samples(trace)])
        first, last = trace.rows("SELECT epoch_ns(min(ts)) AS a, epoch_ns(max(ts)) AS b FROM step")[
            0
        ].values()
        continued = RecordingSums()
        for share in (0.9, 0.5, 0.2):
            monkeypatch.setattr(sums, "SETTLED_NS", int(share * (last - first)))
            assert values_of([*continued.samples(trace)]) == at_once
            assert 0 < continued.settled.counters[names.STEPS, ("0",)] < 300


def test_its_end_waits_for_an_answer_that_is_being_made(
    live: tuple[Path, MetricsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that reads the trace when the process ends would abort it."""
    path, followed = live
    assert followed.supervisor is not None
    metrics, answers, order = MetricsServer(), list[int](), list[str]()
    metrics.follow(path, followed.supervisor)
    reading, go_on = threading.Event(), threading.Event()

    @contextmanager
    def slow_trace(path: Path, **options: Any) -> Iterator[Trace]:
        reading.set()
        with open_trace(path, **options) as trace:
            go_on.wait(60)
            yield trace
        order.append("read")

    monkeypatch.setattr(server, "open_trace", slow_trace)
    asking = threading.Thread(target=lambda: answers.append(len(exported(metrics))))

    def end() -> None:
        metrics.end()
        order.append("ended")

    ending = threading.Thread(target=end)
    asking.start()
    assert reading.wait(60)
    ending.start()
    ending.join(0.2)
    go_on.set()
    asking.join()
    ending.join()
    assert order == ["read", "ended"]
    assert answers[0] > 5
    assert exported(metrics) == {}


def test_the_growth_between_two_ranges_counts() -> None:
    first, later = AllocatorGrowth(5, 10, 15, 20), AllocatorGrowth(1, 18, 19, None)
    assert first.then(later) == AllocatorGrowth(5 + 3 + 1, 10, 19, 20)
    assert first.then(AllocatorGrowth()) == first
    assert AllocatorGrowth().then(first) == first
    assert first.then(AllocatorGrowth(0, 4, 4, 25)) == AllocatorGrowth(
        5, 10, 4, 25
    )  # it shrank: that is no growth


def test_the_lag_is_that_of_the_view() -> None:
    with duckdb.connect() as db:
        tables_of(db, "tight")
        trace = Trace(Path("tight"), db)
        lag = values_of([*RecordingSums().samples(trace)])["fdtrace_scheduling_lag_steps", ("0",)]
        last = trace.rows("FROM call_lag WHERE first_step IS NOT NULL ORDER BY call DESC LIMIT 1")[0]
    assert lag == last["num_unseen_steps"]


def test_it_answers_over_http(live: tuple[Path, MetricsServer]) -> None:
    _, of_recording = live
    assert of_recording.output is not None
    assert of_recording.supervisor is not None
    with serving("0") as metrics:
        assert metrics.url.startswith("http://127.0.0.1:")
        assert served(metrics.url) == {}  # it follows no recording yet
        metrics.follow(of_recording.output, of_recording.supervisor)
        assert served(metrics.url)["fdtrace_steps"] == 300
        port = metrics.url.split(":")[2].split("/")[0]
        with pytest.raises(UsageError, match="cannot be served"), serving(port):
            pass


def test_a_recording_that_cannot_be_read_is_reported(
    live: tuple[Path, MetricsServer], tmp_path: Path
) -> None:
    metrics = MetricsServer()
    assert live[1].supervisor is not None
    metrics.follow(tmp_path / "none.duckdb", live[1].supervisor)
    shown = exported(metrics)
    assert shown["fdtrace_read_error", ()] == 1
    assert not any(name == "fdtrace_steps_total" for name, _ in shown)


ADDRESSES = {
    "9100": ("127.0.0.1", 9100),
    "0.0.0.0:1": ("0.0.0.0", 1),
    "[::1]:9100": ("::1", 9100),
    "host:80": ("host", 80),
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_an_address_is_a_port_or_a_host_and_a_port(text: str) -> None:
    assert address_of(text) == ADDRESSES[text]


@pytest.mark.parametrize("text", ["", "x", "::1:9100", "127.0.0.1", "70000", "a:b:1", "http://x:1", "-1"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        address_of(text)


def test_record_serves_metrics_while_it_records(tmp_path: Path) -> None:
    trace = tmp_path / "t.duckdb"
    command = [sys.executable, "-m", "fdtrace", "record", "-o", trace, "--metrics", "0", "--"]
    engine = [sys.executable, ENGINE, "--steps", 100_000_000]
    process = subprocess.Popen(
        [*map(str, [*command, *engine])],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    try:
        url = url_in(process)
        earlier = steps_served(url, more_than=0)
        later = steps_served(url, more_than=earlier)
    finally:
        process.terminate()
        process.communicate(timeout=900)
    assert query(trace, "SELECT count(*) FROM step")[0][0] >= later > earlier > 0


def url_in(process: subprocess.Popen[str]) -> str:
    """The address that the command names on stderr."""
    assert process.stderr is not None
    for line in process.stderr:
        match = re.search(r"metrics: (http://\S+)", line)
        if match:
            return match[1]
    raise AssertionError("it named no address")


def served(url: str) -> dict[str, float]:
    """For each metric that is served, its first value."""
    with urllib.request.urlopen(url, timeout=300) as answer:
        families = [*text_string_to_metric_families(answer.read().decode())]
    return {family.name: float(family.samples[0].value) for family in families}


def steps_served(url: str, more_than: float) -> float:
    """The steps that the metrics count, as soon as they are more than so many."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        steps = served(url).get("fdtrace_steps", 0.0)
        if steps > more_than:
            return steps
        time.sleep(0.2)
    raise AssertionError("no more steps came")


def test_a_wrong_address_records_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", "-o", str(tmp_path / "t.duckdb"), "--metrics", "nonsense", "--", "true"]) == 2
    assert "--metrics nonsense is no address" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_the_dashboard_and_the_docs_name_the_metrics_that_there_are() -> None:
    known = {metric.name for metric in names.METRICS}
    dashboard: dict[str, Any] = json.loads((ROOT / "docs" / "metrics-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asked = {name for text in queries for name in re.findall(r"fdtrace_[a-z_]+", text)}
    assert asked <= known
    assert len(asked) > len(known) / 2
    assert set(re.findall(r"`(fdtrace_[a-z_]+)`", (ROOT / "docs" / "metrics.md").read_text())) == known


def test_each_sample_has_its_metrics_labels(live: tuple[Path, MetricsServer]) -> None:
    with open_trace(live[0]) as trace:
        for metric, labels, _ in RecordingSums().samples(trace):
            assert len(labels) == len(metric.labels)

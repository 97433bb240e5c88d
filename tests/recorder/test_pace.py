"""How often the collector reads and publishes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fdtrace.recorder.collector.__main__ import IDLE_POLL, POLL, SOON, until_next_read
from fdtrace.recorder.collector.nvml import PERIOD
from fdtrace.recorder.collector.process import PUBLISH, Collector
from fdtrace.recorder.session import Session
from tests.recorder.written_ring import WrittenRing, published


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = Session.create(tmp_path / "t.duckdb")
    yield made
    made.remove_rings()


def test_an_engine_that_does_nothing_costs_no_publication(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, collector = WrittenRing(session), Collector(session)
    engine.steps(3)
    for idle in (False, False, True):
        published(collector)
        assert collector.is_idle == idle
    collector.rest()
    engine.steps(1)
    collector.read()
    assert not collector.is_idle
    for _ in range(3):
        published(collector)
    assert collector.is_idle
    Path(session.output).unlink()
    assert not collector.is_idle, "somebody removed the file: it is published again"
    collector.publish()
    assert collector.is_idle
    monkeypatch.setattr(collector.rings, "problems", lambda: ["a ring is read no further"])
    assert not collector.is_idle, "a note that is not published"
    collector.leave()


def test_it_reads_more_often_the_more_there_is_to_read(session: Session) -> None:
    engine, collector = WrittenRing(session), Collector(session)
    engine.steps(3)
    published(collector)
    collector.published += 1000  # the next publication is not due yet
    assert until_next_read(collector) == POLL
    engine.steps(400)
    collector.read()
    assert until_next_read(collector) == SOON, "a sixteenth of the ring was written since the read before"
    collector.read()
    collector.nvml.handles = [object()]
    assert until_next_read(collector) == PERIOD, "a GPU's memory is sampled as often as before"
    collector.published = time.monotonic() - PUBLISH
    assert until_next_read(collector) == SOON, "a publication failed: it is tried again"
    collector.published = time.monotonic() - PUBLISH + 0.01
    assert 0 < until_next_read(collector) <= SOON, "a publication is never late"
    for _ in range(3):
        published(collector)
    assert until_next_read(collector) == IDLE_POLL
    collector.leave()

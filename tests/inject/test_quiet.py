"""Going before all others, and resting in between."""

from __future__ import annotations

import os
import time

import pytest

from fdtrace.recorder.inject import first_in_line, no_interruptions, rest


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each sleep was to be; none is."""
    asked: list[float] = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked


def compute(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_who_is_not_first_in_line_does_not_rest(slept: list[float]) -> None:
    rest()
    assert slept == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root goes before others for certain")
def test_others_get_as_long_as_was_taken_and_never_for_long(slept: list[float]) -> None:
    with first_in_line():
        compute(0.003)
        rest()
        compute(0.05)
        rest()
    assert 0.003 <= slept[0] <= no_interruptions._LONGEST_REST_S
    assert slept[1] == no_interruptions._LONGEST_REST_S
    assert os.sched_getscheduler(0) == os.SCHED_OTHER

"""No played engine outlives its test, whatever became of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fdtrace.recorder import agent_processes
from tests.recorder import helpers


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is at work answers, however slow this machine is; what has an idle one is `impatient`."""
    monkeypatch.setattr(agent_processes, "ANSWER_WAIT", 600.0)


@pytest.fixture
def impatient(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of an engine that makes no call, and so gives no answer."""
    monkeypatch.setattr(agent_processes, "ANSWER_WAIT", 1.0)


@pytest.fixture(autouse=True)
def no_engine_is_left() -> Iterator[None]:
    """End the engines that the test started."""
    yield
    while helpers.started:
        process = helpers.started.pop()
        if process.poll() is None:
            process.kill()
        process.communicate()

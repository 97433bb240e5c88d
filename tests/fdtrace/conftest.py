"""One small recording of a played engine, shared by the tests of the commands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fdtrace.drivers.children import DriverPool
from fdtrace.scheduler_option import GivenScheduler
from tests.made_once import made_once
from tests.recorder.helpers import record_played


@pytest.fixture(scope="session")
def trace(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of 300 steps, about a fifth of them over the limit."""
    path = tmp_path_factory.mktemp("trace") / "t.duckdb"
    shutil.copy(made_once(shared / "played-300.duckdb", partial(record_played, 300)), path)
    return path


@pytest.fixture(scope="session", autouse=True)
def drivers_of_vllm() -> Iterator[None]:
    """All tests of a worker drive one vLLM, as the replays of a sweep do: to import it takes longer than a test."""
    if not os.environ.get("VLLM_PYTHON"):
        yield
        return
    own = GivenScheduler.open

    def open_scheduler(
        given: GivenScheduler, *sizes: Any, children: DriverPool | None = None, **more: Any
    ) -> Any:
        return own(given, *sizes, children=pool if given.engine == "vllm" else children, **more)

    with DriverPool() as pool, pytest.MonkeyPatch.context() as patched:
        patched.setattr(GivenScheduler, "open", open_scheduler)
        yield

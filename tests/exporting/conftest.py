"""Traces for the tests of `fdtrace export`: simulated ones of the lab's cases, one of them with times."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from fdtrace.cli import main

CASES = Path(__file__).parent.parent / "data" / "cases"
BEGAN = "1790000000000000000"


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace without times, with excess, preemptions and drafts."""
    path = tmp_path_factory.mktemp("export") / "simulated.duckdb"
    assert main(["simulate", str(CASES / "tight_blocks.json"), "-f", "original", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def timed(simulated: Path) -> Path:
    """The same trace with times: a step is 20 ms, its call 0.3 ms and its forward 18 ms; requests come 5 ms before."""
    path = simulated.with_name("timed.duckdb")
    path.write_bytes(simulated.read_bytes())
    with duckdb.connect(str(path)) as db:
        at = f"make_timestamp_ns({BEGAN} + {{}} * 20000000 + {{}})"
        db.execute(
            f"UPDATE step SET ts = {at.format('step', 300_000)}, schedule_us = 300, forward_us = 18000"
        )
        db.execute("UPDATE step SET reserved_bytes = (1 << 30) + step * 1000 WHERE step % 2 = 0")
        db.execute(f"UPDATE call SET ts = {at.format('call', 0)}, last_ts = ts, schedule_us = 300")
        db.execute(f"UPDATE request SET arrived_at = {at.format('arrived_step', -5_000_000)}")
        db.execute(f"UPDATE event SET ts = {at.format('step', 100_000)}")
    return path

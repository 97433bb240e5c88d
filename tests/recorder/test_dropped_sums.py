"""The metrics of a flight recorder count what its ring has dropped, whether anybody asked in the meantime or not."""

from __future__ import annotations

from pathlib import Path

from fdtrace.metrics import names
from fdtrace.metrics.names import Metric
from fdtrace.metrics.sums import RecordingSums
from fdtrace.recorder.flight.flight_plan import SECOND, FlightPlan
from fdtrace.recorder.trace.trace import open_trace
from tests.recorder.driven_flight import LIMIT, DrivenFlight
from tests.recorder.helpers import query

STEP = SECOND // 10


def test_what_the_ring_drops_stays_counted(tmp_path: Path) -> None:
    plan = FlightPlan(window_ns=4 * SECOND, counts=True)
    flight = DrivenFlight(tmp_path / "flights", plan)
    steps, excess = [], []
    for number in range(200):
        tokens = 40 if number % 50 == 7 else 1
        flight.step(number * STEP, tokens=tokens)
        excess.append(max(2 * tokens - LIMIT, 0) if number % 8 else 0)
        if number % 20 == 19:
            flight.publish()
            steps.append(shown(flight, RecordingSums(), names.STEPS, "0"))
        if number == 119:
            flight.close_here()
            flight.collect_anew()
    assert steps == list(range(20, 201, 20))
    assert query(flight.directory.ring, "SELECT min(step) FROM step")[0][0] > 100
    asked_once = RecordingSums()
    for _ in range(2):
        assert shown(flight, asked_once, names.EXCEEDED, "0", "max_num_batched_tokens") == sum(
            over > 0 for over in excess
        )
        assert shown(flight, asked_once, names.EXCESS, "0", "max_num_batched_tokens") == sum(excess)
    flight.end()


def shown(flight: DrivenFlight, sums: RecordingSums, metric: Metric, *labels: str) -> float:
    """The value of a metric, read from the ring as it is now."""
    with open_trace(flight.directory.ring) as trace:
        return {(of, values): value for of, values, value in sums.samples(trace)}[metric, labels]

"""What clients waited: times to first token, between tokens, of whole requests; and how many were served well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class Percentiles:
    """Of a distribution; None: there is nothing to tell of."""

    p50: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Percentiles:
        """The percentiles of `values`; all are None where there is none."""
        if not len(values):
            return cls(None, None, None)
        return cls(*np.quantile(values, QUANTILES).tolist())


@dataclass(frozen=True)
class Latencies:
    """Of the requests that came in a history and were not aborted; microseconds, from a request's arrival to the end of
    the step that made its token.
    """

    num_requests: int
    """Requests that made a first token."""
    ttft_us: Percentiles
    """From the arrival to the first token."""
    itl_us: Percentiles
    """Between two steps that made tokens of a request; a step with accepted drafts makes several at once."""
    latency_us: Percentiles
    """From the arrival to the last token, of those that ended."""
    output_tokens_per_s: float
    requests_per_s: float
    """Those that ended."""
    duration_s: float
    busy_share: float
    """Share of that time in which a step ran: where it is below 1, throughput is that of the arrivals."""
    goodput_per_s: float | None = None
    """Requests a second that ended and kept every objective; None: none is set."""
    slo: Mapping[str, float] = field(default_factory=dict)
    """The objectives, microseconds by name."""
    num_steps_beyond: int | None = None
    """Steps with more of something than the time model was fitted from: extrapolated. None: it is the recording."""

"""The state of an engine when its recording began."""

from __future__ import annotations

from dataclasses import dataclass

from fdtrace.recorder.trace.column_values import MISSING


@dataclass(frozen=True)
class InitialRequest:
    """A request that was already running when the recording began, in its state before its first recorded step."""

    request: int
    num_computed_tokens: int
    num_blocks: int
    decoding: bool
    num_total_tokens: int = MISSING
    """Its prompt and output tokens when it first decoded, with the token sampled last; MISSING: it did not decode."""
    first_step: int = MISSING
    """The first recorded step that it ran in; MISSING: in none."""
    num_output_tokens: int = MISSING
    """Its output tokens when the recording began; MISSING: this follows from its first recorded step."""

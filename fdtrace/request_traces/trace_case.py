"""A request trace as a case, request by request: times become steps, and what a trace does not say is added.

A trace has no sizes of a scheduler. They come from a recording (`--like`), from `--set`, or are `SIZES`; each note says
what was assumed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.workload.case_variables import LARGEST
from fdtrace.request_traces.acceptances import Acceptances
from fdtrace.request_traces.trace_entry import TraceRequest
from fdtrace.request_traces.trace_formats import ReadingOptions, TraceFormat

SIZES: Mapping[str, Any] = {
    "max_num_batched_tokens": 8192,
    "max_num_seqs": 256,
    "num_blocks": 8192,
    "block_size": 64,
}
"""Where nothing else gives them: FastDeploy's default budget, and room for 524,288 tokens."""
LEAST_LEN = 32768
LEN_UNIT = 1024
SPARE_BLOCKS = 2
"""FastDeploy asks for so many blocks more than the longest sequence needs."""
STEP_MS = 20.0
"""Milliseconds of a step, if nothing else gives them."""


def characters_length(characters_per_token: float) -> tuple[Any, str]:
    """The length of a text by its characters, and what to say of it."""
    if not characters_per_token > 0:
        raise UsageError(f"--chars-per-token is {characters_per_token:g}", hint="more than 0, as 4")
    note = (
        f"lengths of texts are their characters by {characters_per_token:g} (--tokenizer FILE counts tokens)"
    )
    return lambda text: round(len(text) / characters_per_token), note


def _default_reading() -> ReadingOptions:
    return ReadingOptions(*characters_length(4.0))


@dataclass
class CaseOptions:
    """What is added to a trace."""

    reading: ReadingOptions = field(default_factory=_default_reading)
    step_ms: float | None = None
    """Milliseconds of a step; None: `STEP_MS`, which a note says."""
    rate: float | None = None
    """Requests a second, if the trace has no times; None: all come at once."""
    output: int | None = None
    """Output tokens of a request of which the trace does not say them."""
    acceptances: Acceptances | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the case."""
    first: int | None = None
    """Only so many requests."""
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    """What the options themselves rest on."""


class TraceCase:
    """The case of one request trace. First take all `requests`, then the `sizes`, which depend on them."""

    def __init__(self, path: Path, format_: TraceFormat, options: CaseOptions) -> None:
        self.path, self.format, self.options = path, format_, options
        self.count = 0
        self._longest = 0
        self._begin_ms: float | None = None
        self._clock_ms = 0.0
        self._timed: bool | None = None
        self._hashed = False
        self._without_output = 0
        self._chance = random.Random(options.seed)

    @property
    def step_ms(self) -> float:
        """Milliseconds of a step."""
        return self.options.step_ms or STEP_MS

    def requests(self) -> Iterator[dict[str, Any]]:
        """The requests of the case, in the order of the trace.

        Raises:
            UsageError: a line is wrong; the error names it, the field, and what to do.
        """
        for request in self.format.read(self.path, self.options.reading):
            if self.options.first is not None and self.count >= self.options.first:
                return
            yield self._request(request)
            self.count += 1

    def _request(self, request: TraceRequest) -> dict[str, Any]:
        output = request.output
        if output is None:
            output = self.options.output
            self._without_output += 1
        if output is None:
            raise UsageError(
                f"{request.where} does not say how many tokens come out",
                hint="--output-tokens 128, for all of these",
            )
        self._longest = max(self._longest, request.prompt + output)
        made: dict[str, Any] = {
            "id": f"r{self.count}",
            "arrival": self._arrival(request),
            "prompt": request.prompt,
            "output": output,
        }
        if request.hash_ids:
            self._hashed = True
            made["hash_ids"] = list(request.hash_ids)
        if self.options.acceptances is not None:
            made["accepts"] = self.options.acceptances.drawn(output)
        return made

    def _arrival(self, request: TraceRequest) -> int:
        is_timed = request.time_ms is not None
        if self._timed not in (None, is_timed):
            raise UsageError(
                f"{request.where} {'has a time' if is_timed else 'has no time'}",
                why=f"the requests before it {'have none' if is_timed else 'have one'}",
                hint="give each request a time, or none",
            )
        self._timed = is_timed
        if request.time_ms is None:
            if self.options.rate is None:
                return 0
            now = self._clock_ms
            self._clock_ms += self._chance.expovariate(self.options.rate) * 1000
            return int(now / self.step_ms)
        if self._begin_ms is None:
            self._begin_ms = request.time_ms
        after = round(request.time_ms - self._begin_ms, 6)
        if after < 0:
            raise UsageError(
                f"{request.where} came {-after:g} ms before the first request of the file",
                why="arrivals are counted from the first request",
                hint="sort the file by time",
            )
        step = int(after / self.step_ms + 1e-9)
        if step > LARGEST:
            raise UsageError(
                f"{request.where} comes {after:g} ms after the first request",
                why=f"that is step {step}, and engines count in 32 bits",
                hint="correct its time, or a larger --step-ms",
            )
        return step

    def sizes(self) -> dict[str, Any]:
        """The sizes of the case, its notes among them: after all requests were taken."""
        given = self.options.sizes
        sizes = {**SIZES, **given}
        if "max_model_len" not in given:
            sizes["max_model_len"] = max(LEAST_LEN, -(-(self._longest + 1) // LEN_UNIT) * LEN_UNIT)
        if "num_blocks" not in given:
            needed = -(-sizes["max_model_len"] // sizes["block_size"]) + SPARE_BLOCKS
            sizes["num_blocks"] = max(SIZES["num_blocks"], needed)
        if self._hashed:
            sizes["prefix_caching"] = True
            sizes["hash_block_size"] = self.options.reading.hash_block_size or self.format.hash_block_size
        if self.options.acceptances is not None:
            sizes["num_speculative_tokens"] = self.options.acceptances.num_drafts
        sizes["notes"] = self._notes(sizes)
        return sizes

    def _notes(self, sizes: Mapping[str, Any]) -> list[str]:
        options, notes = self.options, list(self.options.notes)
        assumed = {name: sizes[name] for name in (*SIZES, "max_model_len") if name not in options.sizes}
        if assumed:
            values = ", ".join(f"{name} {value}" for name, value in assumed.items())
            notes.append(f"a request trace has no sizes of a scheduler; assumed: {values}")
        if self._timed and options.step_ms is None:
            notes.append(f"arrivals: a step counts as {STEP_MS:g} ms, which is assumed")
        elif self._timed:
            notes.append(f"arrivals: a step counts as {self.step_ms:g} ms")
        elif self.count and options.rate is None:
            notes.append("the trace has no times: all requests come before step 0")
        elif self.count:
            notes.append(
                f"the trace has no times: {options.rate:g} requests a second are drawn (seed {options.seed}), a step "
                f"counts as {self.step_ms:g} ms"
            )
        if self._without_output:
            notes.append(
                f"{self._without_output} requests have no output length: {options.output} is given to them"
            )
        if options.acceptances is not None:
            drawn = options.acceptances
            notes.append(
                f"acceptances are drawn (seed {options.seed}): {drawn.rate:.3f} of {drawn.num_drafts} drafts a forward"
            )
        counted = options.reading.notes
        return [*notes, *(f"{text} ({count:,})" for text, count in counted.items() if count)]


def case_of_trace(path: Path, format_: TraceFormat, options: CaseOptions | None = None) -> dict[str, Any]:
    """The case of a request trace, in memory. UsageError if a line is wrong."""
    trace = TraceCase(path, format_, options or CaseOptions())
    requests = list(trace.requests())
    return {**trace.sizes(), "requests": requests}


def written_case(trace: TraceCase) -> Iterator[str]:
    """The same as JSON, in pieces: one request is in memory at a time. UsageError if a line is wrong."""
    yield '{"requests": ['
    separator = "\n"
    for request in trace.requests():
        yield f"{separator}{json.dumps(request)}"
        separator = ",\n"
    yield "\n]"
    for name, value in trace.sizes().items():
        yield f",\n{json.dumps(name)}: {json.dumps(value)}"
    yield "}\n"

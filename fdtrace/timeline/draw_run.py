"""Draws one run: steps with counters, calls, excess and events, and requests in lanes. The layout is here alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fdtrace.recorder.trace.column_values import MISSING, Ints
from fdtrace.timeline.request_spans import OpenSpans, RequestSpan, lanes_of
from fdtrace.timeline.timeline_file import TimelineFile
from fdtrace.timeline.timeline_run import TimelineArgs, TimelineRun, TimelineSteps

COUNTERS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "tokens",
        (
            ("token_budget", "budget of the call", "tokens"),
            ("num_scheduled_tokens", "counted by the call", "tokens"),
            ("num_tokens", "ran", "tokens"),
            ("excess", "over the limit", "tokens"),
            ("num_prefill_tokens", "ran in prefills", "tokens"),
            ("num_decode_tokens", "ran in decodes", "tokens"),
            ("num_draft_tokens", "drafts", "tokens"),
            ("num_accepted_tokens", "drafts accepted", "tokens"),
        ),
    ),
    (
        "queues",
        (
            ("num_running", "running", "requests"),
            ("num_waiting", "waiting", "requests"),
            ("num_preempted", "preempted by the call", "requests"),
            ("num_stalled", "stalled", "requests"),
        ),
    ),
    ("blocks", (("num_free_blocks", "free", "blocks"),)),
    (
        "memory",
        (
            ("allocated_bytes", "allocated", "bytes"),
            ("reserved_bytes", "reserved", "bytes"),
            ("peak_allocated_bytes", "peak allocated", "bytes"),
            ("peak_reserved_bytes", "peak reserved", "bytes"),
            ("device_used_bytes", "of the device used", "bytes"),
        ),
    ),
)
"""Groups of counters: a column, how its track is called, its unit."""
STEP_COLUMNS = tuple(column for _, counters in COUNTERS for column, _, _ in counters if column != "excess")
"""The columns that a step of a run may have."""
KINDS = ("nothing", "decode", "prefill", "prefill and decode")
"""The name of a step, by 1 for decodes and 2 for prefills."""


@dataclass(frozen=True)
class _Tracks:
    steps: int
    counters: tuple[tuple[str, int], ...]
    """Column, track."""


def draw_run(file: TimelineFile, run: TimelineRun, *, each_decode: bool = False) -> None:
    """Draw a run.

    Args:
        file: where to.
        run: what.
        each_decode: a slice for each decode of each request, in place of one for decodes that follow each other.
    """
    top = file.group(run.name)
    _instants(file, run, top)
    steps = file.track("steps (forwards)", top)
    _calls(file, run, top)
    tracks = _Tracks(steps, _counters(file, run, top))
    requests = _Requests(file, run, top)
    spans = OpenSpans(run.requests.last_entry, each=each_decode)
    for some in run.steps():
        _steps(file, run, tracks, some)
        end = some.first + len(some.columns["num_tokens"])
        for request, ran in spans.feed(some.rows, end):
            requests.draw(request, ran)
    requests.draw_waiting()


def _instants(file: TimelineFile, run: TimelineRun, top: int) -> None:
    for name, instants in ((f"exceeded (limit {run.limit})", run.exceeded()), ("events", run.events())):
        track = None
        for instant in instants:
            track = file.track(name, top) if track is None else track
            file.instant(track, instant.ns, instant.name, instant.args)


def _calls(file: TimelineFile, run: TimelineRun, top: int) -> None:
    track = None
    for call in run.calls():
        track = file.track("scheduling calls", top) if track is None else track
        file.begin(track, call.begin_ns, call.name, call.args)
        file.end(track, call.end_ns)


def _counters(file: TimelineFile, run: TimelineRun, top: int) -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    for group, counters in COUNTERS:
        known = [counter for counter in counters if counter[0] in (*run.columns, "excess")]
        if known:
            parent = file.group(group, top)
            found += [(column, file.counter(name, unit, parent)) for column, name, unit in known]
    return tuple(found)


def _steps(file: TimelineFile, run: TimelineRun, tracks: _Tracks, some: TimelineSteps) -> None:
    tokens = some.columns["num_tokens"]
    part = slice(some.first, some.first + len(tokens))
    excess = np.maximum(tokens - run.limit, 0)
    kinds = (some.columns["num_decode_tokens"] > 0) + 2 * (some.columns["num_prefill_tokens"] > 0)
    columns = [excess if column == "excess" else some.columns[column] for column, _ in tracks.counters]
    values = np.stack(columns, axis=1)
    is_whole = (values != MISSING).all(axis=1)
    uuids = [track for _, track in tracks.counters]
    figures = zip(
        run.numbers[part].tolist(), run.begin_ns[part].tolist(), run.end_ns[part].tolist(), kinds.tolist(),
        excess.tolist(), values.tolist(), is_whole.tolist(), strict=True,
    )  # fmt: skip
    for number, begin, end, kind, over, row, whole in figures:
        pairs = list(zip(uuids, row, strict=True))
        if not whole:
            pairs = [pair for pair in pairs if pair[1] != MISSING]
        name = f"{KINDS[kind]}, exceeded" if over else KINDS[kind]
        file.begin(tracks.steps, begin, name, {"step": number}, pairs)
        file.end(tracks.steps, end)


class _Requests:
    """The requests of a run, in lanes: those that run, and those that wait for their first step."""

    def __init__(self, file: TimelineFile, run: TimelineRun, top: int) -> None:
        self.file, self.run = file, run
        requests = run.requests
        ran = np.flatnonzero(requests.first_entry != MISSING)
        order = ran[np.argsort(requests.first_entry[ran], kind="stable")]
        begins, ends = requests.first_entry[order], requests.last_entry[order] + 1
        self._lanes = lanes_of(
            zip(begins.tolist(), ends.tolist(), order.tolist(), strict=True), len(requests.ids)
        )
        self._tracks = _lane_tracks(file, "requests that run", "lane", self._lanes, top)
        self._top = top

    def draw(self, request: int, spans: list[RequestSpan]) -> None:
        """Draw one request: a slice of its own, and in it what it ran, and its pauses."""
        run, file = self.run, self.file
        track = self._tracks[int(self._lanes[request])]
        begin, end = int(run.begin_ns[spans[0].first]), int(run.end_ns[spans[-1].last])
        file.begin(
            track, begin, run.requests.ids[request] or f"request {request}", run.requests.args(request)
        )
        before: RequestSpan | None = None
        for span in spans:
            span_begin, span_end = int(run.begin_ns[span.first]), int(run.end_ns[span.last])
            if before is not None and span.first > before.last + 1:
                name, args = _pause(before, span, run.numbers)
                file.begin(track, int(run.end_ns[before.last]), name, args)
                file.end(track, span_begin)
            file.begin(track, span_begin, *_slice_of(span, run.numbers))
            file.end(track, span_end)
            before = span
        file.end(track, end)

    def draw_waiting(self) -> None:
        """Draw how long each request waited for its first step."""
        waits = list(self._waits())
        lanes = lanes_of(waits, len(self.run.requests.ids))
        tracks = _lane_tracks(self.file, "requests that wait for their first step", "place", lanes, self._top)
        for begin, end, request in waits:
            track = tracks[int(lanes[request])]
            name = self.run.requests.ids[request] or f"request {request}"
            self.file.begin(track, begin, name, self.run.requests.args(request))
            self.file.end(track, end)

    def _waits(self) -> Iterator[tuple[int, int, int]]:
        requests, run = self.run.requests, self.run
        if not len(run.begin_ns):
            return
        ran = requests.first_entry != MISSING
        ends = np.where(ran, run.begin_ns[np.where(ran, requests.first_entry, 0)], run.end_ns[-1])
        waited = np.flatnonzero((requests.arrived_ns != MISSING) & (requests.arrived_ns < ends))
        order = waited[np.argsort(requests.arrived_ns[waited], kind="stable")]
        yield from zip(requests.arrived_ns[order].tolist(), ends[order].tolist(), order.tolist(), strict=True)


def _lane_tracks(file: TimelineFile, name: str, lane: str, lanes: Ints, top: int) -> list[int]:
    count = int(lanes.max(initial=MISSING)) + 1
    if not count:
        return []
    group = file.group(name, top)
    return [file.track(f"{lane} {number}", group) for number in range(count)]


def _slice_of(span: RequestSpan, numbers: Ints) -> tuple[str, TimelineArgs]:
    if span.prefill:
        args = {"step": int(numbers[span.first]), "num_computed_tokens": span.computed_before}
        return f"prefill {span.num_tokens}", args
    return "decode" if span.num_steps == 1 else f"{span.num_steps} decodes", {
        "first_step": int(numbers[span.first]),
        "last_step": int(numbers[span.last]),
        "num_tokens": span.num_tokens,
        "num_accepted_tokens": span.num_accepted,
    }


def _pause(before: RequestSpan, span: RequestSpan, numbers: Ints) -> tuple[str, TimelineArgs]:
    """A preempted request is prefilled anew: fewer of its tokens are computed than before."""
    args = {"after_step": int(numbers[before.last]), "before_step": int(numbers[span.first])}
    computed = before.computed_last + (before.num_tokens if before.prefill else 0)
    if span.prefill and span.computed_before < computed:
        return "preempted", {**args, "discarded_tokens": computed - span.computed_before}
    return "not scheduled", args

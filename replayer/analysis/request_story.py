"""What happened to one request under one formula: its prefill chunks, its decodes, its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.history.history import History
from fdtrace.replayer.model.events import StepRow


@dataclass(frozen=True)
class PrefillChunk:
    """One prefill chunk: its step, its tokens, and the request's tokens computed before it."""

    step: int
    num_tokens: int
    num_computed_tokens: int


@dataclass
class Decodes:
    """Decode forwards of a request in consecutive steps."""

    first: int
    last: int
    num_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0


@dataclass
class RequestStory:
    """What happened to a request: step numbers and tokens. None: unknown, or it did not happen.

    `segments` are its prefill chunks and its runs of decodes, in order. At the steps in `restarts` its prefill starts
    again after a preemption. A request that was running when the recording began has no arrival.
    """

    name: str
    request_id: str
    arrived: int | None
    num_prompt_tokens: int | None
    segments: list[PrefillChunk | Decodes] = field(default_factory=list)
    restarts: list[int] = field(default_factory=list)
    first_token: int | None = None
    """The step whose forward emitted its first output token: the step of its last prompt chunk."""
    finished: int | None = None
    finish_reason: str = ""

    @property
    def steps_to_first_token(self) -> int | None:
        """Steps from its arrival to its first token, both included."""
        if self.first_token is None or self.arrived is None:
            return None
        return self.first_token - self.arrived + 1

    @property
    def chunks(self) -> list[PrefillChunk]:
        """The prefill chunks."""
        return [segment for segment in self.segments if isinstance(segment, PrefillChunk)]

    @property
    def decodes(self) -> list[Decodes]:
        """The runs of decodes."""
        return [segment for segment in self.segments if isinstance(segment, Decodes)]

    @property
    def last(self) -> int | None:
        """The last step in which it ran."""
        if not self.segments:
            return None
        segment = self.segments[-1]
        return segment.step if isinstance(segment, PrefillChunk) else segment.last


def story_of(recording: Recording, history: History, request_id: str) -> RequestStory | None:
    """The story of a request, by its id; None if the history does not know its requests.

    It reads all steps of the request: call it off the screen's thread.
    """
    if history.request_steps is None:
        return None
    index = _request_index(recording, request_id)
    story = RequestStory(history.name, request_id, None, None)
    if index is not None:
        story.arrived = _request_value(recording, "arrived_step", index)
        story.num_prompt_tokens = _request_value(recording, "num_prompt_tokens", index)
    _fill(story, history.request_steps(request_id))
    if index is not None:
        _end(story, recording, history, index)
    return story


def _request_index(recording: Recording, request_id: str) -> int | None:
    ids = recording.requests.get("request_id")
    if ids is None:
        return None
    return next((i for i, candidate in enumerate(ids.tolist()) if candidate == request_id), None)


def _request_value(recording: Recording, name: str, index: int) -> int | None:
    values = recording.requests.get(name)
    return None if values is None or values[index] == MISSING else int(values[index])


def _fill(story: RequestStory, rows: Sequence[tuple[int, StepRow]]) -> None:
    decodes: Decodes | None = None
    computed = 0
    for step, row in rows:
        if row.kind == "prefill":
            decodes = None
            if story.segments and row.num_computed_tokens < computed:
                story.restarts.append(step)
            story.segments.append(PrefillChunk(step, row.num_tokens, row.num_computed_tokens))
            computed = row.num_computed_tokens + row.num_tokens
            prompt = story.num_prompt_tokens
            if story.first_token is None and (prompt is None or computed >= prompt):
                story.first_token = step
            continue
        computed = row.num_computed_tokens + row.num_tokens
        if decodes is None or step > decodes.last + 1:
            decodes = Decodes(step, step)
            story.segments.append(decodes)
        decodes.last = step
        decodes.num_steps += 1
        decodes.num_draft_tokens += row.num_draft_tokens
        decodes.num_accepted_tokens += row.num_accepted_tokens
    if story.segments and isinstance(story.segments[0], Decodes):
        story.first_token = None


def _end(story: RequestStory, recording: Recording, history: History, index: int) -> None:
    """Set where the request ended: its recorded end; in a rescheduled history the last step in which it ran.

    If that history hangs and the request ran in its last step, the request has no end.
    """
    endings = recording.details.endings
    finished, aborted = int(endings.finished_step[index]), int(endings.aborted_step[index])
    reasons = recording.requests.get("finish_reason")
    reason = "" if reasons is None else str(reasons[index] or "")
    if history.how != "rescheduled":
        ended = finished if finished != MISSING else aborted
        story.finished = None if ended == MISSING else ended
        story.finish_reason = reason
        return
    steps = history.columns["step"]
    hung = history.outcome.hang is not None
    ran_to_end = story.last is not None and len(steps) and story.last >= int(steps[-1])
    if story.last is not None and finished != MISSING and not (hung and ran_to_end):
        story.finished, story.finish_reason = story.last, reason

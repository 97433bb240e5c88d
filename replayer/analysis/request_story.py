"""One request's life under one formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fdtrace.recorder.trace.column_values import MISSING

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.history.history import History
from fdtrace.replayer.model.events import StepRow


@dataclass(frozen=True)
class PrefillChunk:
    """One prefill chunk: its step, its tokens, those computed before."""

    step: int
    num_tokens: int
    num_computed_tokens: int


@dataclass
class Decodes:
    """Decode forwards with no other step of its history between them."""

    first: int
    last: int
    num_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0


@dataclass
class Story:
    """A request's life: steps by number, tokens. None is unknown, or did not happen.

    `parts` are chunks and runs of decodes in order. At a step in `restarts` its prefill begins anew: it had
    been preempted before. A request that recording found running has no arrival.
    """

    name: str
    request_id: str
    arrived: int | None
    num_prompt_tokens: int | None
    parts: list[PrefillChunk | Decodes] = field(default_factory=list)
    restarts: list[int] = field(default_factory=list)
    first_token: int | None = None
    """The step whose forward gave its first output token: that of its last prompt chunk."""
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
        return [part for part in self.parts if isinstance(part, PrefillChunk)]

    @property
    def decodes(self) -> list[Decodes]:
        """The runs of decodes."""
        return [part for part in self.parts if isinstance(part, Decodes)]

    @property
    def last(self) -> int | None:
        """The last step in which it ran."""
        if not self.parts:
            return None
        part = self.parts[-1]
        return part.step if isinstance(part, PrefillChunk) else part.last


def story_of(recording: Recording, history: History, request_id: str) -> Story | None:
    """The story of a request, by its id; None where the history does not know its requests.

    Reads all its steps: call it off the screen's thread.
    """
    if history.request_steps is None:
        return None
    number = _entry(recording, request_id)
    story = Story(history.name, request_id, None, None)
    if number is not None:
        story.arrived = _known(recording, "arrived_step", number)
        story.num_prompt_tokens = _known(recording, "num_prompt_tokens", number)
    _fill(story, history.request_steps(request_id))
    if number is not None:
        _end(story, recording, history, number)
    return story


def _entry(recording: Recording, request_id: str) -> int | None:
    ids = recording.requests.get("request_id")
    if ids is None:
        return None
    return next((i for i, found in enumerate(ids.tolist()) if found == request_id), None)


def _known(recording: Recording, name: str, number: int) -> int | None:
    values = recording.requests.get(name)
    return None if values is None or values[number] == MISSING else int(values[number])


def _fill(story: Story, rows: Sequence[tuple[int, StepRow]]) -> None:
    decodes: Decodes | None = None
    computed = 0
    for step, row in rows:
        if row.kind == "prefill":
            decodes = None
            if story.parts and row.num_computed_tokens < computed:
                story.restarts.append(step)
            story.parts.append(PrefillChunk(step, row.num_tokens, row.num_computed_tokens))
            computed = row.num_computed_tokens + row.num_tokens
            prompt = story.num_prompt_tokens
            if story.first_token is None and (prompt is None or computed >= prompt):
                story.first_token = step
            continue
        computed = row.num_computed_tokens + row.num_tokens
        if decodes is None or step > decodes.last + 1:
            decodes = Decodes(step, step)
            story.parts.append(decodes)
        decodes.last = step
        decodes.num_steps += 1
        decodes.num_draft_tokens += row.num_draft_tokens
        decodes.num_accepted_tokens += row.num_accepted_tokens
    if story.parts and isinstance(story.parts[0], Decodes):
        story.first_token = None


def _end(story: Story, recording: Recording, history: History, number: int) -> None:
    """Where it ended: as recorded, else the last step in which it ran, where that is before the history's."""
    endings = recording.details.endings
    finished, aborted = int(endings.finished_step[number]), int(endings.aborted_step[number])
    reasons = recording.requests.get("finish_reason")
    reason = "" if reasons is None else str(reasons[number] or "")
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

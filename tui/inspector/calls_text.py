"""The scheduling calls of a recorded step in words: what its call found and did, and how far behind it was."""

from __future__ import annotations

from fdtrace.recorder.step_calls import StalledRequest, StepCall, StepCalls
from fdtrace.tui.inspector.page import Page

MANY_BEHIND = 3
"""From so many forwards that a call had not taken in, the line is marked."""


def calls_section(page: Page, calls: StepCalls) -> None:
    """The call, the calls in between, and for stalled requests the call that each waited for."""
    page.head("its call")
    own, step = calls.of_step, calls.step
    if own is None:
        page.say("made before this recording began", page.look.palette.dim)
    else:
        page.say(f"call {own.call}, begun {_ago(own.began_us)}{_took(own)}", page.look.palette.strong)
        if own.first_step is not None and own.first_step < step:
            page.say(f"its tasks entered forward {own.first_step}; none came since", page.look.palette.dim)
        page.say(f"found: {_state_text(own)}")
        page.say(f"did: {_did(own)}")
        if own.not_admitted:
            page.say(f"left waiting: {_left(own)}", page.look.palette.event)
        _lag(page, own, own.first_step if own.first_step is not None else step)
    _between(page, calls)
    _stalled(page, calls)


def _lag(page: Page, call: StepCall, step: int) -> None:
    """The forwards before `step` whose outputs the call had not taken in."""
    if call.seen_step is None:
        page.say("it had taken in no output", page.look.palette.dim)
        return
    behind = max(0, step - call.seen_step - 1)
    if not behind:
        page.say(f"it had taken in all outputs before forward {step}", page.look.palette.good)
        return
    first, last = call.seen_step + 1, step - 1
    steps_text = f"{first}" if first == last else f"{first} to {last}"
    page.say(
        f"{behind} forward{'s' * (behind > 1)} behind when its tasks ran: outputs up to {call.seen_step} taken in, "
        f"not those of {steps_text}",
        page.look.palette.event if behind >= MANY_BEHIND else None,
    )


def _between(page: Page, calls: StepCalls) -> None:
    if not calls.between:
        return
    page.head("calls in between")
    if calls.num_between > len(calls.between):
        page.say(f"{calls.num_between - len(calls.between)} more before these", page.look.palette.dim)
    for call in calls.between:
        several = call.num_calls > 1
        number = f"{call.call}-{call.call + call.num_calls - 1}" if several else f"{call.call}"
        seen = "" if call.seen_step is None else f", outputs up to {call.seen_step} taken in"
        if call.idle:
            count = f"{call.num_calls} calls, " if several else ""
            page.say(
                f"{number} {_ago(call.began_us)}: {count}nothing to hand out{_why(call)}{seen}",
                page.look.palette.dim,
            )
        else:
            forward_text = "its forward is not recorded"
            if call.first_step is not None:
                forward_text = (
                    "entered it too" if call.first_step == calls.step else f"enters forward {call.first_step}"
                )
            page.say(f"{number} {_ago(call.began_us)}: {_did(call)}; {forward_text}{seen}")


def _stalled(page: Page, calls: StepCalls) -> None:
    if not calls.stalled:
        return
    page.head("who waited for which call")
    for request in calls.stalled:
        page.say(f"{request.request_id}: {_waited(request, calls.step)}", page.look.palette.event)


def _waited(request: StalledRequest, step: int) -> str:
    since_text = "stalls from here on" if request.since == step else f"stalls since forward {request.since}"
    if request.call is None:
        return f"{since_text}; no call of this recording gave it blocks"
    action = {"extended": "gave it blocks", "preempted": "preempted it", "aborted": "aborted it"}[request.did]
    call_text = f"call {request.call} {action}, in forward {request.first_step}"
    began = request.began_us or 0
    if began <= 0:
        return f"{since_text}; {call_text}: it had begun {_ago(began)}, and its tasks were on their way"
    return f"{since_text}; {call_text}: it began {_ms(began)} after this forward"


def _state_text(call: StepCall) -> str:
    parts = [
        f"budget {_number(call.token_budget)}",
        f"{_number(call.num_running_decodes)} decodes",
        f"{_number(call.num_prefilling)} in prefill",
    ]
    return ", ".join(parts)


def _did(call: StepCall) -> str:
    parts = []
    if call.num_chunks:
        admitted = f" ({call.num_admitted} admitted)" if call.num_admitted else ""
        parts.append(f"{call.num_chunks} chunk{'s' * (call.num_chunks > 1)}{admitted}")
    for name in ("extended", "preempted", "aborted"):
        count = getattr(call, f"num_{name}")
        if count:
            parts.append(f"{count} {name}")
    counted = f"{_number(call.num_scheduled_tokens)} tokens counted"
    after = f"then waiting {_number(call.num_waiting)}, free blocks {_number(call.num_free_blocks)}"
    return f"{', '.join(parts) or 'nothing'}; {counted}; {after}"


def _left(call: StepCall) -> str:
    missing = f", {call.num_missing_blocks} short" if call.num_missing_blocks else ""
    return f"{call.head or 'the head of the queue'}, by {call.not_admitted}{missing}"


def _why(call: StepCall) -> str:
    return f" ({_left(call)})" if call.not_admitted else ""


def _took(call: StepCall) -> str:
    return "" if call.took_us is None else f", took {_ms(call.took_us)}"


def _ago(us: int) -> str:
    return f"{_ms(-us)} before this forward" if us <= 0 else f"{_ms(us)} after it began"


def _ms(us: int) -> str:
    return f"{us / 1000:.1f} ms"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)

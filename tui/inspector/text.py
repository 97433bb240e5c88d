"""An inspection in words: the arithmetic of the budget, what was charged, what ran, why the queue waited."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from fdtrace.replayer.analysis.step_account import StepAccount
from fdtrace.replayer.formulas.worked_example import MINUS, TIMES, budget_and_charge
from fdtrace.replayer.model.events import Decision, Reason, StepRow
from fdtrace.tui.inspector.calls_text import calls_section
from fdtrace.tui.inspector.inspector import Inspection
from fdtrace.tui.inspector.page import Page
from fdtrace.tui.theme import Look, memory_size


def inspection_lines(inspection: Inspection, width: int, look: Look) -> list[Text]:
    """What one column of the inspector shows."""
    page = Page(width, look)
    if inspection.error:
        page.say(inspection.error.replace("\n", " "), look.palette.exceeded, 0)
    account = inspection.account
    if account is None:
        if inspection.absent or not inspection.error:
            page.say(inspection.absent or "this history has no such step", look.palette.dim, 0)
        _waiting(page, inspection)
        return page.lines
    if inspection.absent:
        page.say(inspection.absent, look.palette.exceeded, 0)
        page.say(f"its last call, at step {account.step}:", indent=0)
    else:
        _verdict(page, account)
    _budget(page, account)
    _charged(page, inspection, account)
    _state(page, inspection, account)
    if inspection.calls is not None:
        calls_section(page, inspection.calls)
    _decided(page, inspection)
    _requests(page, inspection, account)
    return page.lines


def _verdict(page: Page, account: StepAccount) -> None:
    ran, limit, palette = account["num_tokens"], account.limit, page.look.palette
    if account.excess <= 0:
        page.say(f"fits: ran {ran} of {limit} tokens", palette.good, 0)
        return
    mark = page.look.glyphs.exceeded
    page.say(f"{mark} exceeds {limit} by {account.excess}: ran {ran}", palette.exceeded, 0)
    decodes, uncounted = account["num_decode_tokens"], account.uncounted
    if uncounted is not None and uncounted > 0 and decodes:
        counted = account.charged_decodes
        page.say(f"{uncounted} tokens ran that nobody counted: decodes were charged {counted}, ran {decodes}")
    elif decodes is not None and account["num_prefill_tokens"] is not None:
        page.say(f"decodes ran {decodes}, prefills {account['num_prefill_tokens']}")


def _budget(page: Page, account: StepAccount) -> None:
    palette, formula = page.look.palette, account.formula
    page.head("budget")
    if formula is None:
        page.say(f"{_number(account['token_budget'])} (its formula is not known)")
        return
    if account.arithmetic is None:
        page.say(formula.text or formula.description or formula.name, palette.dim)
        if account.unknown:
            page.say(
                f"its {', '.join(account.unknown)} is not known until this step is replayed", palette.dim
            )
        page.say(f"= {_number(account['token_budget'])}", palette.strong)
        return
    arithmetic = account.arithmetic
    page.say(budget_and_charge(formula.text)[0].replace("*", TIMES).replace(" - ", f" {MINUS} "), palette.dim)
    for index, line in enumerate(arithmetic.lines):
        last = index == len(arithmetic.lines) - 1
        page.say(f"= {line}", palette.strong if last else None)
    for reason in arithmetic.because:
        page.say(reason, palette.event)
    budget = account["token_budget"]
    if budget is not None and budget != arithmetic.value:
        page.say(f"the history has {budget}: it was made under another formula", palette.exceeded)


def _charged(page: Page, inspection: Inspection, account: StepAccount) -> None:
    """The sums: requests, the tokens that the call counted for them, the tokens that their forward ran."""
    page.head("charged and run")
    palette, drafts = page.look.palette, account.draft_tokens
    prefills = sum(row.kind == "prefill" for row in inspection.rows)
    tokens_per_decode = 1 + drafts
    decodes = (account["num_decode_tokens"] or 0) // max(tokens_per_decode, 1)
    if any(row.kind == "decode" for row in inspection.rows):
        decodes = sum(row.kind == "decode" for row in inspection.rows)
    widths = (12, 7, 9, 9)
    page.row(("", "count", "charged", "ran"), widths, palette.dim)
    ran_decode, ran_prefill = account["num_decode_tokens"], account["num_prefill_tokens"]
    page.row(("decodes", str(decodes), _number(account.charged_decodes), _number(ran_decode)), widths)
    count = str(prefills) if prefills or not ran_prefill else "-"
    page.row(("prefills", count, _number(ran_prefill), _number(ran_prefill)), widths)
    total = ("together", "", _number(account["num_scheduled_tokens"]), _number(account["num_tokens"]))
    page.row(total, widths, palette.exceeded if account.excess > 0 else palette.strong)
    decode_text = f"a decode ran 1+{drafts}" if drafts else "a decode ran 1"
    if account.charge:
        page.say(f"each decode was charged {account.charge} in the loop; {decode_text}", palette.dim)
    elif account.charge == 0:
        page.say(f"decodes are reserved by the budget, not charged in the loop; {decode_text}", palette.dim)
    if ran_decode is not None and account.excess > 0:
        room = account.limit - ran_decode
        page.say(
            f"room for prefills was {account.limit} {MINUS} {ran_decode} = {room}; they ran {ran_prefill}",
            palette.event,
        )


def _growth(previous: int | None, bytes_now: int | None, arrow: str) -> str:
    """Memory before and after a step, and by how much it grew."""
    used = bytes_now or 0
    growth = f" (+{memory_size(used - previous)})" if previous is not None and used > previous else ""
    return f"{'-' if previous is None else memory_size(previous)} {arrow} {memory_size(used)}{growth}"


def _state(page: Page, inspection: Inspection, account: StepAccount) -> None:
    page.head("before and after")
    arrow = "->" if page.look.glyphs.border == "ascii" else "→"
    before = account.before
    if account["num_free_blocks"] is not None:
        num_blocks = account["num_blocks"]
        previous = (
            inspection.explained.num_free_blocks if inspection.explained else before.get("num_free_blocks")
        )
        change = f"{_number(previous)} {arrow} {account['num_free_blocks']}"
        page.say(f"free blocks {change}" + (f" of {num_blocks}" if num_blocks else ""))
    for name, text in (("reserved_bytes", "reserved"), ("peak_allocated_bytes", "needed at most")):
        if account[name] is not None:
            page.say(f"memory {text} {_growth(before.get(name), account[name], arrow)}")
    running, waiting = account["num_running"], account["num_waiting"]
    page.say(f"running {_number(running)}, waiting {_number(waiting)}")
    for name in ("preempted", "stalled"):
        number = account[f"num_{name}"]
        if number:
            page.say(f"{number} {name}", page.look.palette.event)
    page.say(_queue(inspection, account), None if account.not_admitted else page.look.palette.dim)


def _queue(inspection: Inspection, account: StepAccount) -> str:
    """Why the head of the queue was not admitted."""
    reason = account.not_admitted
    if not reason:
        if account["num_waiting"]:
            return "the queue: its head was skipped, or the engine does not tell why it stayed"
        return "the queue: nothing was left waiting"
    head = inspection.explained.head if inspection.explained else None
    request_text = f"{head[0]} ({head[1]} tokens)" if head else "its head"
    missing = account["num_missing_blocks"]
    more_needed = f": {missing} more were needed" if missing else ""
    budget = account["token_budget"]
    reasons = {
        "budget": f"no budget was left: all of {_number(budget)} was handed out or charged"
        if (budget or 0) > 0
        else f"the budget was {_number(budget)}",
        "blocks": f"too few free blocks{more_needed}",
        "input_budget": "the workers' input had no room left for it and its draft slots",
        "watermark": f"its blocks were free, but not the watermark besides{more_needed}",
        "padding": "a new decode is padded to 1 + K tokens, and these did not fit",
        "throttle": "this call left prefills to a later one, to balance data-parallel ranks",
        "deferred": "nothing that waits is ready",
        "paused": "the scheduler is paused",
        "formula": "the formula does not admit it",
        "slots": "all sequence slots were taken",
        "preemption": "this call preempted a request, and then admits none"
        if account["num_preempted"]
        else "a request was preempted, and none is admitted until a running one ends",
        "cache_read": _cache_read(account),
        "safety_margin": f"fewer blocks were free than the safety margin keeps{more_needed}",
    }
    return f"the queue: {request_text} was not admitted: {reasons.get(reason, reason)}"


def _cache_read(account: StepAccount) -> str:
    """Both numbers are KV cache tokens; no request of a batch may be read beyond the budget."""
    budget, counted = account["cache_read_budget"], account["num_cache_read_tokens"]
    figures = "" if budget is None or counted is None else f": {counted} of {budget} were counted"
    return f"its computed tokens did not fit what the batch may still read from the KV cache{figures}"


def _waiting(page: Page, inspection: Inspection) -> None:
    if inspection.share is not None:
        page.say(
            f"replaying up to this step for its reasons: {inspection.share:.0%}",
            page.look.palette.dim,
            indent=0,
        )


def _decided(page: Page, inspection: Inspection) -> None:
    """The reasons of a replay's decisions, or a recording's events."""
    if inspection.explained is not None:
        page.head("what the call decided")
        reasons = [reason for decision in inspection.explained.decisions for reason in decision.reasons]
        for reason in reasons:
            page.say(_reason(reason))
        if not reasons:
            page.say(_undecided(inspection.explained.decisions), page.look.palette.dim)
    elif inspection.events:
        page.head("events")
        for event in inspection.events:
            text = " ".join(part for part in (event.kind, event.request_id, event.reason) if part)
            page.say(text + (f" {event.detail}" if event.detail not in ("", "{}", "null") else ""))
    else:
        _waiting(page, inspection)


def _undecided(decisions: Sequence[Decision]) -> str:
    if decisions and decisions[-1].token_budget <= 0:
        return "nothing: with no budget the loop visits no request, and extends no block table"
    return "nothing but that the decodes go on"


def _reason(reason: Reason) -> str:
    figures = dict(reason.figures)
    request_id = reason.request_id or ""
    if reason.kind == "prefill":
        tokens, num_left, budget = figures["num_tokens"], figures["of"], figures["budget"]
        return (
            f"prefill {request_id}: {tokens} of {num_left} tokens left, budget {budget}, "
            f"{figures['num_blocks']} blocks"
        )
    if reason.kind == "extended":
        slots, threshold = figures["free_slots"], figures["threshold"]
        return (
            f"extend {request_id} by {figures['num_blocks']} blocks: {slots} free slots, at most {threshold}"
        )
    if reason.kind == "preempted":
        needed = f"{figures['needed_by']} needs {figures['needed_blocks']}"
        return (
            f"preempt {request_id}: frees {figures['freed_blocks']}; {needed}, {figures['free_blocks']} free"
        )
    return reason.text


def _requests(page: Page, inspection: Inspection, account: StepAccount) -> None:
    """For each request: the tokens that the call counted for it, and the tokens that its forward ran."""
    if not inspection.rows:
        return
    page.head("request by request")
    palette = page.look.palette
    name = max(8, min(max(len(row.request_id) for row in inspection.rows) + 1, page.width - 38))
    widths = (name, 8, 9, 7, 12)
    page.row(("request", "kind", "charged", "ran", "computed"), widths, palette.dim)
    for row in inspection.rows:
        charged = str(row.num_tokens) if row.kind == "prefill" else _charge(account)
        cells = (row.request_id, row.kind, charged, str(row.num_tokens), _progress(row))
        page.row(cells, widths, palette.strong if row.kind == "prefill" else None)


def _charge(account: StepAccount) -> str:
    """The tokens that the call counted for one decode."""
    if account.charge:
        return str(account.charge)
    counted, decodes = account.charged_decodes, account["num_running_decodes"]
    if counted is None or not decodes:
        return "-"
    return str(counted // decodes) if counted % decodes == 0 else f"{counted / decodes:.1f}"


def _progress(row: StepRow) -> str:
    return f"{row.num_computed_tokens}+{row.num_tokens}"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value).replace("-", MINUS)

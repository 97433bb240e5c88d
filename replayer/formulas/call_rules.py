"""The rules that a formula may have besides its budget, and which scheduler takes which of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fdtrace.recorder.errors import UsageError

RULES: dict[str, str] = {
    "charge": "tokens that each running decode takes from the budget, when the call's loop visits it; without it 0",
    "chunk_charge": "tokens that a chunk of a prefill takes from the budget; without it num_chunk_tokens",
    "chunk_cap": "most tokens of a prefill that one request gets in one call",
    "admit": "whether the head of the waiting queue may be admitted; if it is 0, the call admits nobody else",
    "input_budget": "vLLM's second budget, tokens and draft slots; without it the setting max_num_batched_tokens",
    "draft_slots": "tokens of input_budget that each request pays for its drafter; without it num_draft_slots",
    "max_requests": "most requests that one call schedules, in place of input_budget and draft_slots",
}
"""Rule -> meaning, in the order in which `fdtrace formulas` lists them. A class has a method of that name."""

OF_A_REQUEST = ("chunk_charge", "chunk_cap", "admit")
"""Rules about one request: they may name its variables too (`REQUEST_VARIABLES`)."""

MODEL_TAKES = ("charge", "chunk_charge", "chunk_cap", "admit")
"""What the model of FastDeploy's scheduler takes."""

VLLM_TAKES = ("input_budget", "draft_slots", "max_requests")
"""What vLLM's own `Scheduler` takes: numbers that it reads at each call."""

DRIVEN_TAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "vllm": (
        VLLM_TAKES,
        "vLLM itself takes from its budget what each request gets, and has its own rules of admission",
    ),
    "transformers": (
        (),
        "transformers itself takes from its budget the tokens of each request, 1 for a decode, and has its own rules "
        "of admission",
    ),
}
"""Engine whose own scheduler gets its budget from a formula -> the other rules that it takes, and why no more."""


def refuse_rules(name: str, rules: Collection[str], taken: Collection[str], scheduler: str, why: str) -> None:
    """UsageError if a formula called `name` has a rule that `scheduler` does not take. `why` it takes only `taken`."""
    refused = [rule for rule in RULES if rule in rules and rule not in taken]
    if refused:
        raise UsageError(
            f"{', '.join(refused)} of formula {name!r} cannot be used with {scheduler}",
            why=why,
            hint=f"leave it out: it takes {', '.join(('budget', *taken))}; `fdtrace formulas` says what each means",
        )


def split_rules(text: str) -> Iterator[tuple[str, str]]:
    """The parts of a formula's text: ("budget", expression), then each rule and its expression.

    A part that names no rule comes with an empty name.
    """
    budget, *parts = text.split(";")
    yield "budget", budget.strip()
    for part in parts:
        name = part.strip()
        word = name.split(None, 1)[0].rstrip(":") if name else ""
        yield (word, name[len(word) :].lstrip(" :\t\n")) if word in RULES else ("", name)

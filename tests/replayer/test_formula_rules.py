"""The rules of a formula besides its budget, in the model and in every way to write them."""

from __future__ import annotations

from typing import Any

import pytest

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer import SchedulerConfig
from fdtrace.replayer.config import POLICIES
from fdtrace.replayer.formulas import (
    BUILTIN,
    REQUEST_VARIABLES,
    RULES,
    Formula,
    RequestVariables,
    Variables,
    formula_from_class,
    parse_formula,
)
from fdtrace.replayer.model.events import SCHEDULE, Arrived, Decision, Forwarded
from fdtrace.replayer.model.scheduler import Scheduler

PLAIN = SchedulerConfig(100, 8, 400, block_size=4, max_model_len=512, prefix_caching=True)


def run(formula: Formula, prompts: list[int], calls: int, config: SchedulerConfig = PLAIN) -> list[Decision]:
    """The decisions of some calls about prompts that are all there before the first."""
    scheduler = Scheduler(config, formula)
    decisions = []
    for i, prompt in enumerate(prompts):
        scheduler.apply(Arrived(f"r{i}", prompt, 8, accepts=[0], num_output_tokens=8, block_key=None))
    for _ in range(calls):
        decisions.append(scheduler.apply(SCHEDULE))
        scheduler.apply(Forwarded())
    return decisions


def chunks(decisions: list[Decision]) -> list[list[int]]:
    return [[end - begin for _, begin, end in decision.chunks] for decision in decisions]


def test_a_cap_limits_each_request_in_each_call() -> None:
    found = run(parse_formula("mine: max_num_batched_tokens; chunk_cap 30"), [70, 20, 50], 3)
    assert chunks(found)[0] == [30, 20, 30]
    assert sum(chunk[0] for chunk in chunks(found)) == 70


def test_a_cap_may_name_the_request_and_what_is_left() -> None:
    text = "mine: max_num_batched_tokens; chunk_cap budget_left // 2 if num_prompt_tokens > 60 else 10"
    assert chunks(run(parse_formula(text), [70, 20], 1)) == [[50, 10]]


def test_a_request_that_is_not_admitted_ends_the_admissions_and_says_why() -> None:
    found = run(parse_formula("mine: 100; admit num_running < 2 and num_prompt_tokens < 40"), [20, 60, 20], 1)
    assert chunks(found) == [[20]]
    assert (found[0].not_admitted, found[0].num_waiting) == ("formula", 2)
    assert "not admitted r1: because the formula" in {reason.text for reason in found[0].reasons}


@pytest.mark.parametrize(
    ("rule", "second"),
    [
        ("", 60),  # 40 tokens are left of 100, and 20 of 60 are computed: the cache had 40
        ("; chunk_charge num_chunk_tokens + num_cached_tokens", 60),
    ],
)
def test_cached_tokens_are_charged_only_if_the_formula_says_so(rule: str, second: int) -> None:
    config = PLAIN
    scheduler = Scheduler(config, parse_formula(f"mine: 100{rule}"))

    def arrive(name: str, prompt: int, content: str) -> None:
        scheduler.apply(
            Arrived(name, prompt, 8, accepts=[0], num_output_tokens=8, block_key=lambda i: (content, i))
        )

    arrive("first", 44, "same")
    scheduler.apply(SCHEDULE)
    scheduler.apply(Forwarded())
    arrive("again", second, "same")
    arrive("other", 90, "other")
    decision = scheduler.apply(SCHEDULE)
    given = {name: end - begin for name, begin, end in decision.chunks}
    cached = next(begin for name, begin, _ in decision.chunks if name == "again")
    assert cached == 44
    assert given["again"] == second - cached
    left = 100 - (second if rule else second - cached)
    assert given["other"] == min(left, 90)


def test_a_class_writes_the_same_rules() -> None:
    class Mine:
        """Small chunks."""

        def budget(self, v: Variables) -> int:
            return v.max_num_batched_tokens

        def chunk_cap(self, v: Variables, r: RequestVariables) -> int:
            return 30 if r.num_prompt_tokens > 30 else r.num_prompt_tokens

        def admit(self, v: Variables, r: RequestVariables) -> bool:
            return v.num_waiting < 10 and not r.was_preempted

    formula = formula_from_class(Mine)
    assert formula.rules == {"chunk_cap", "admit"}
    assert chunks(run(formula, [70, 20], 2)) == chunks(
        run(parse_formula("m: max_num_batched_tokens; chunk_cap 30"), [70, 20], 2)
    )


def test_a_subclass_of_formula_has_the_rules_that_it_defines() -> None:
    class Own(Formula):
        name = "own"

        def budget(self, v: Variables) -> int:
            return 10

        def input_budget(self, v: Variables) -> int:
            return 5

    assert Own().rules == {"input_budget"}
    assert formula_from_class(Own).rules == {"input_budget"}
    assert BUILTIN["original"].rules == {"charge"}
    assert BUILTIN["pr7499"].rules == set()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine: 1; admit", "it is empty"),
        ("mine: 1; admit 1; admit 0", "has admit twice"),
        ("mine: 1; cap 5", "after `;` comes a rule"),
        ("mine: num_prompt_tokens", "there is no variable 'num_prompt_tokens'"),
        ("mine: 1; charge num_prompt_tokens", "there is no variable 'num_prompt_tokens'"),
        ("mine: 1; chunk_cap num_promt_tokens", "did you mean 'num_prompt_tokens'"),
    ],
)
def test_what_is_no_rule_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_formula(text)


@pytest.mark.parametrize("rule", ["input_budget", "draft_slots", "max_requests"])
def test_the_model_refuses_rules_of_another_scheduler(rule: str) -> None:
    with pytest.raises(UsageError, match=f"{rule} of formula 'mine' cannot be used with the model"):
        Scheduler(PLAIN, parse_formula(f"mine: 10; {rule} 5"))
    assert rule in RULES


def test_without_chunked_prefill_there_are_no_chunks_to_cap() -> None:
    whole = SchedulerConfig(100, 8, 400, max_model_len=512, chunked_prefill=False)
    with pytest.raises(UsageError, match="without chunked prefill"):
        Scheduler(whole, parse_formula("mine: 100; chunk_cap 5"))


def test_a_charge_of_a_chunk_is_not_negative() -> None:
    with pytest.raises(UsageError, match="charges a chunk -5 tokens"):
        run(parse_formula("mine: 100; chunk_charge 0 - 5"), [20], 1)


def test_the_variables_of_a_request_are_all_documented() -> None:
    assert ["call", *REQUEST_VARIABLES] == list(RequestVariables.__slots__)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=list(POLICIES))
def test_rules_that_change_nothing_change_nothing(policy: Any) -> None:
    plain = Scheduler(PLAIN, parse_formula("mine: 60; charge 1"), policy)
    ruled = Scheduler(
        PLAIN,
        parse_formula("mine: 60; charge 1; chunk_cap 10000; admit 1; chunk_charge num_chunk_tokens"),
        policy,
    )
    for step in range(60):
        for scheduler in (plain, ruled):
            if step % 3 == 0:
                scheduler.apply(Arrived(f"r{step}", 20 + 7 * step, 8, accepts=[0], num_output_tokens=8))
        decisions = [scheduler.apply(SCHEDULE) for scheduler in (plain, ruled)]
        assert decisions[0] == decisions[1]
        for scheduler in (plain, ruled):
            scheduler.apply(Forwarded())

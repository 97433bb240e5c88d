"""Formulas: what they compute, for one call and for columns alike, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer import SchedulerConfig
from fdtrace.replayer.formulas import (
    BUILTIN,
    VARIABLES,
    Formula,
    Variables,
    formula_from_class,
    parse_formula,
)
from fdtrace.replayer.formulas.expression import Expression


def variables(**changes: int) -> Variables:
    config = SchedulerConfig(1024, 64, 3000, num_speculative_tokens=4, spec_method="mtp")
    v = Variables.of(config)
    for name, value in changes.items():
        setattr(v, name, value)
    return v


def test_the_variables_are_all_documented() -> None:
    assert list(VARIABLES) == list(Variables.__slots__)
    assert all(VARIABLES.values())


@pytest.mark.parametrize(
    ("name", "with_drafts", "without", "charges"),
    [
        ("original", 1024, 1024, (1, 1)),
        ("pr7438", 704, 896, (1, 1)),
        ("pr7499", 1024 - 10 * 5, 1024 - 10 * 2, (0, 0)),
        ("pr7623", 1024 - 10 * 5, 1024 - 10, (0, 0)),
        ("exact", 1024, 1024, (5, 1)),
        ("ternary", 704, 1, (1, 1)),
    ],
)
def test_builtin_budgets(name: str, with_drafts: int, without: int, charges: tuple[int, int]) -> None:
    formula = BUILTIN[name]
    drafting = variables(num_running_decodes=10)
    plain = Variables.of(SchedulerConfig(1024, 64, 3000))
    plain.num_running_decodes = 10
    assert (formula.budget(drafting), formula.budget(plain)) == (with_drafts, without)
    assert (formula.charge(drafting), formula.charge(plain)) == charges


def test_the_floor_of_pr7438_undoes_its_reservation() -> None:
    assert BUILTIN["pr7438"].budget(variables(max_num_batched_tokens=512, max_num_seqs=64)) == 512


state = st.fixed_dictionaries(
    {
        "num_running_decodes": st.integers(0, 300),
        "num_running": st.integers(0, 300),
        "num_waiting": st.integers(0, 3),
        "max_num_batched_tokens": st.integers(1, 20000),
        "max_num_seqs": st.integers(1, 512),
        "num_speculative_tokens": st.integers(0, 8),
        "num_draft_tokens": st.integers(0, 8),
        "speculation": st.integers(0, 1),
        "block_size": st.sampled_from([16, 64]),
        "num_blocks": st.integers(1, 5000),
        "max_model_len": st.integers(1, 65536),
        "num_draft_slots": st.integers(0, 8),
    }
)


@given(state)
def test_a_builtin_equals_its_own_text(values: dict[str, int]) -> None:
    v = Variables(**values)
    for formula in BUILTIN.values():
        spelled = parse_formula(f"mine: {formula.text}")
        assert spelled.budget(v) == formula.budget(v)
        assert spelled.charge(v) == formula.charge(v)


class Stepwise(Formula):
    """Evaluated state by state."""

    name = "stepwise"

    def __init__(self, inner: Formula) -> None:
        self.inner = inner

    def budget(self, v: Variables) -> int:
        return self.inner.budget(v)

    def charge(self, v: Variables) -> int:
        return self.inner.charge(v)


leaves = st.sampled_from([*VARIABLES, "0", "1", "2", "7", "0.5", "1000"])


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        st.tuples(
            pairs,
            st.sampled_from(["+", "-", "*", "/", "//", "%", "<", "<=", ">", ">=", "==", "!=", "and", "or"]),
        ).map(lambda found: f"({found[0][0]} {found[1]} {found[0][1]})"),
        st.tuples(inner, st.sampled_from(["-", "+", "not "])).map(lambda found: f"({found[1]}{found[0]})"),
        st.tuples(pairs, inner).map(lambda found: f"({found[0][0]} if {found[1]} else {found[0][1]})"),
        st.tuples(pairs, inner).map(lambda found: f"({found[0][0]} < {found[1]} <= {found[0][1]})"),
        st.tuples(pairs, inner).map(lambda found: f"({found[0][0]} and {found[1]} or {found[0][1]})"),
        st.tuples(pairs, st.sampled_from(["min", "max"])).map(
            lambda found: f"{found[1]}({found[0][0]}, {found[0][1]})"
        ),
    )


expressions = st.recursive(leaves, _grown, max_leaves=12)


def _value(compute: Any) -> Any:
    try:
        return compute()
    except UsageError:
        return "refused"


@given(expressions, st.lists(state, min_size=1, max_size=6))
def test_columns_and_single_calls_agree(text: str, states: list[dict[str, int]]) -> None:
    formula = parse_formula(f"mine: {text}")
    columns = {name: np.array([values[name] for values in states]) for name in VARIABLES}
    single = [_value(lambda values=values: formula.budget(Variables(**values))) for values in states]
    whole = _value(lambda: formula.budgets(columns, len(states)).tolist())
    assert whole == ("refused" if "refused" in single else single)


@given(st.lists(state, min_size=1, max_size=20))
def test_evaluating_state_by_state_is_the_same(states: list[dict[str, int]]) -> None:
    columns = {name: np.array([values[name] for values in states]) for name in VARIABLES}
    for formula in BUILTIN.values():
        for method in ("budgets", "charges"):
            wholesale = getattr(formula, method)(columns, len(states))
            assert wholesale.tolist() == getattr(Stepwise(formula), method)(columns, len(states)).tolist()


def test_arithmetic_means_what_it_means_in_python() -> None:
    v = variables(num_running_decodes=7, num_running=9, num_waiting=0)
    for text in (
        "-num_running_decodes // 2",
        "(num_running == 9) + (num_waiting == 0)",
        "num_waiting or num_running and 3",
        "1 < num_running_decodes < num_running",
        "5 if not num_waiting else 1 // num_waiting",
        "max(num_running, 3, 100) % 7",
    ):
        names = {name: getattr(v, name) for name in VARIABLES}
        assert parse_formula(f"mine: {text}").budget(v) == int(eval(text, {}, names))


REFUSED = [
    ("mine: __import__('os')", "only min() and max() can be called", "__import__"),
    ("mine: max_num_seqs.__class__", "attributes cannot be reached", "max_num_seqs.__class__"),
    ("mine: (1).__class__.__bases__[0]", "there is nothing to subscript", "(1).__class__.__bases__[0]"),
    ("mine: 1 + 2 ** 999999999", "powers are not offered", "2 ** 999999999"),
    ("mine: 1 << 99", "shifts are not offered", "1 << 99"),
    ("mine: 'a' * 9", "a value of type str", "'a'"),
    ("mine: f'{1}'", "text has no place here", "f'{1}'"),
    ("mine: lambda: 1", "functions cannot be made", "lambda: 1"),
    ("mine: [n for n in (1, 2)]", "ListComp is not offered", "[n for n in (1, 2)]"),
    ("mine: (n := 3)", "nothing can be assigned", "n := 3"),
    ("mine: open('x')", "only min() and max() can be called", "open"),
    ("mine: max(*[1, 2], 3)", "lists cannot be unpacked", "*[1, 2]"),
    ("mine: max(1, key=2)", "takes two values or more", "max(1, key=2)"),
    ("mine: None", "a value of type NoneType", "None"),
    ("mine: True", "a value of type bool", "True"),
    ("mine: 3j", "a value of type complex", "3j"),
    ("mine: 1e999", "this number is too large", "1e999"),
    ("mine: num_runing + 1", "did you mean 'num_running'?", "num_runing"),
    ("mine: 1 +", "does not parse", None),
    ("mine: 1; 2", "after `;` comes a rule, as `charge EXPRESSION`", None),
    ("mine:", "it is empty", None),
    ("mine: 1 if", "does not parse", None),
    ("mine: " + "(" * 300 + "1" + ")" * 300, "does not parse", None),
    ("mine: " + "-" * 300 + "1", "nested", None),
    ("mine: " + "+".join("1" * 400), "more than", None),
    ("mine: " + "1 " * 2000, "too long", None),
    ("mine: 1\x00", "does not parse", None),
    ("pr7499: 1", "is a built-in formula", None),
    ("9mine: 1", "cannot be named", None),
    ("nonsense", "there is no formula 'nonsense'", None),
]


@pytest.mark.parametrize(("text", "message", "marked"), REFUSED)
def test_what_is_refused_and_where(text: str, message: str, marked: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        parse_formula(text)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
    if marked is not None:
        _, source, marker = caught.value.what.splitlines()
        start = marker.index("^")
        assert source[start : start + marker.count("^")] == marked


def test_division_by_zero_tells_the_variables() -> None:
    formula = parse_formula("mine: max_num_batched_tokens // num_waiting")
    with pytest.raises(UsageError) as caught:
        formula.budget(variables(num_waiting=0))
    assert "num_waiting is 0, and it divides" in str(caught.value)
    assert "max_num_batched_tokens = 1024, num_waiting = 0" in str(caught.value)
    columns = {name: np.asarray(getattr(variables(), name)) for name in VARIABLES}
    columns["num_waiting"] = np.array([2, 1, 0, 4])
    with pytest.raises(UsageError, match="in entry 2 of the recorded steps"):
        formula.budgets(columns, 4)


def test_values_stay_bounded() -> None:
    formula = parse_formula("mine: " + " * ".join(["max_model_len"] * 12))
    with pytest.raises(UsageError, match="too large"):
        formula.budget(variables())
    columns = {name: np.asarray(getattr(variables(), name)) for name in VARIABLES}
    with pytest.raises(UsageError, match="too large"):
        formula.budgets(columns, 3)


def test_a_charge_of_the_users_own() -> None:
    formula = parse_formula("mine: max_num_batched_tokens; charge num_draft_tokens + 1")
    assert (formula.budget(variables()), formula.charge(variables())) == (1024, 5)
    with pytest.raises(UsageError, match="charges a decode -1 tokens"):
        parse_formula("mine: 1; charge -1").charge(variables())


class Mine:
    """Half the limit."""

    def budget(self, v: Variables) -> int:
        return v.max_num_batched_tokens // 2


class Broken:
    def budget(self, v: Variables) -> int:
        return v.nothing  # type: ignore[attr-defined,no-any-return]


class Wordy:
    def budget(self, v: Variables) -> Any:
        return "many"


def test_a_class_of_the_users_own() -> None:
    formula = formula_from_class(Mine)
    assert (formula.name, formula.description) == ("Mine", "Half the limit.")
    assert (formula.budget(variables()), formula.charge(variables())) == (512, 0)
    with pytest.raises(UsageError, match=r"AttributeError: .*nothing"):
        formula_from_class(Broken).budget(variables())
    with pytest.raises(UsageError, match="'many'"):
        formula_from_class(Wordy).budget(variables())
    for wrong in (3, int, Mine(), "Mine"):
        with pytest.raises(UsageError, match="is no formula"):
            formula_from_class(wrong)


def test_a_formula_and_an_expression_say_what_they_are() -> None:
    assert repr(BUILTIN["pr7499"]) == (
        "<Pr7499 'pr7499': max_num_batched_tokens - num_running_decodes * (num_speculative_tokens + 1)>"
    )
    assert (
        repr(parse_formula("mine: num_running; charge 2"))
        == "<ExpressionFormula 'mine': num_running; charge 2>"
    )

    class Mine:
        def budget(self, v: Variables) -> int:
            return v.num_running

    assert repr(formula_from_class(Mine)) == "<ClassFormula 'Mine'>"
    assert (
        repr(Expression("num_running + 1", "formula 'mine'"))
        == "<Expression of formula 'mine': num_running + 1>"
    )


def test_the_repr_of_a_formula_shows_control_characters_as_escapes() -> None:
    assert "\x1b" not in repr(parse_formula("mine: num_running # \x1b[2J"))

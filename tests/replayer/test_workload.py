"""Workloads: the case format, and what is wrong with one that is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.recording import EngineInfo
from fdtrace.replayer import RELEASE_2_6, Simulation, parse_policy, workload_from_case
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.formulas import BUILTIN

CASE: dict[str, Any] = {
    "max_num_seqs": 4,
    "num_blocks": 50,
    "max_num_batched_tokens": 128,
    "max_model_len": 1024,
    "num_speculative_tokens": 2,
    "requests": [{"id": "a", "arrival": 1, "prompt": 70, "output": 9, "accepts": [2, 0, 1]}],
}


def test_a_case_becomes_a_configuration_and_requests() -> None:
    env = {"FD_ENC_DEC_BLOCK_NUM": 3, "FD_DETERMINISTIC_MODE": 1, "FD_USE_NEW_TOKEN_RATIO_RESERVE": "0"}
    work = workload_from_case({**CASE, "env": env})
    config = work.config
    assert (config.num_speculative_tokens, config.num_draft_tokens, config.speculation) == (2, 2, True)
    assert (config.enc_dec_block_num, config.split_kv_size, config.use_new_token_ratio) == (3, 16, False)
    assert config.max_blocks_per_seq == 16
    request = work.requests[0]
    assert (request.request_id, request.arrival, request.num_prompt_tokens) == ("a", 1, 70)
    assert (request.num_output_tokens, tuple(request.accepts)) == (9, (2, 0, 1))


def test_without_a_method_the_configured_drafts_are_one_and_none_run() -> None:
    plain = {**CASE, "num_speculative_tokens": 0, "requests": [{"prompt": 5, "output": 2}]}
    config = workload_from_case(plain).config
    assert (config.num_speculative_tokens, config.num_draft_tokens, config.speculation) == (1, 0, False)


def test_release_2_6_enlarges_the_threshold_with_speculation_up_to_an_extension() -> None:
    drafts = workload_from_case({**CASE, "num_speculative_tokens": 4}).config
    assert RELEASE_2_6.threshold(drafts) == 60
    assert RELEASE_2_6.threshold(SchedulerConfig(128, 4, 50)) == 12
    many = SchedulerConfig(128, 4, 50, block_size=16, num_speculative_tokens=4, spec_method="mtp")
    assert RELEASE_2_6.threshold(many) == 31


WRONG: list[tuple[Any, str]] = [
    ([], "is a JSON object"),
    ({**CASE, "max_num_seqs": None}, "lacks `max_num_seqs`"),
    ({**CASE, "num_blocks": "many"}, "`num_blocks` must be a whole number"),
    ({**CASE, "max_num_seqs": 0}, "max_num_seqs must be at least 1"),
    ({**CASE, "max_num_batched_tokens": True}, "must be a whole number"),
    ({name: value for name, value in CASE.items() if name != "requests"}, "has no `requests`"),
    ({**CASE, "requests": [5]}, "`requests[0]` is no object"),
    ({**CASE, "requests": [{"prompt": 5}]}, "lacks `requests[0].output`"),
    ({**CASE, "requests": [{"prompt": 5, "output": 0}]}, "must be at least 1"),
    ({**CASE, "requests": [{"prompt": 5, "output": 1, "accepts": [3]}]}, "more than the 2 drafts"),
    ({**CASE, "requests": [{"prompt": 5, "output": 1, "accepts": ["x"]}]}, "list of whole numbers"),
    ({**CASE, "requests": CASE["requests"] * 2}, "the same `id`"),
    ({**CASE, "env": {"FD_ENC_DEC_BLOCK_NUM": "two"}}, "`env.FD_ENC_DEC_BLOCK_NUM` must be a whole number"),
]


@pytest.mark.parametrize(("case", "message"), WRONG)
def test_what_is_no_case_is_told(case: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        workload_from_case(case)
    assert message in str(caught.value)


def test_a_policy_has_a_name() -> None:
    assert parse_policy("release_2_6") is RELEASE_2_6
    with pytest.raises(UsageError, match="there is no policy 'newest'"):
        parse_policy("newest")


def test_a_simulation_names_its_hang(case_of: Callable[[str], dict[str, Any]]) -> None:
    workload = workload_from_case(case_of("full_reservation"))
    hanging = Simulation(workload, BUILTIN["pr7623"], with_rows=False)
    steps = [step.forward.num_tokens for step in hanging]
    assert hanging.hang is not None
    assert steps[hanging.hang.step - 1] > 0
    assert not any(steps[hanging.hang.step :])
    assert "the scheduling loop never runs" in hanging.hang.cause
    moving = Simulation(workload, BUILTIN["exact"], with_rows=False)
    assert all(step.forward.num_tokens <= 64 for step in moving)
    assert moving.hang is None


def test_an_engine_row_becomes_a_configuration() -> None:
    engine = EngineInfo(
        0,
        "fastdeploy",
        "2.6.0",
        2048,
        64,
        3,
        64,
        900,
        8192,
        spec_method="mtp",
        chunked_prefill=False,
        env={"FD_ENC_DEC_BLOCK_NUM": "4"},
    )
    config = SchedulerConfig.from_engine(engine)
    assert (config.num_draft_tokens, config.chunked_prefill, config.enc_dec_block_num) == (3, False, 4)


@pytest.mark.parametrize(
    ("version", "recorded", "given"),
    [("2.5.0", 24, 24), ("2.6.0", 48, 12), ("2.6.0", 80, 20), ("2.5.0", 12, 12), ("2.6.0", 127, 12)],
)
def test_the_threshold_that_was_given_is_told_from_the_one_in_force(
    version: str, recorded: int, given: int
) -> None:
    """Release 2.6 puts K + 1 times the threshold in its place, at most a token less than an extension."""
    drafts = 10 if recorded == 127 else 3
    told = {"prealloc_dec_block_slot_num_threshold": recorded, "enc_dec_block_num": 2}
    engine = EngineInfo(0, "fastdeploy", version, 2048, 64, drafts, 64, 900, 8192, "mtp", config=told)
    assert SchedulerConfig.from_engine(engine).prealloc_threshold == given

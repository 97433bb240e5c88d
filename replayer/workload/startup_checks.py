"""What FastDeploy checks before it serves: a configuration or a prompt that it refuses, with the check's source.

The model schedules such a workload nevertheless: it is still useful to see what its rules would do. But the result must
also say that no server would get there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.config import Policy, SchedulerConfig
from fdtrace.replayer.workload.workload import Workload, WorkRequest

MOST_SEQUENCES, LEAST_MODEL_LEN = 512, 16
MOST_NAMED = 3
METHODS, MOST_DRAFTS = ("naive", "mtp", "ngram", "suffix"), 5
"""Speculative methods, and drafts of all but the first."""
CHECK = "`FDConfig.check` in config.py"
SPECULATION = "`SpeculativeConfig.check_legality_parameters` in config.py"
POSTPROCESS = "`CacheConfig.postprocess` in config.py"
ADMISSION = "`EngineClient.add_requests` in entrypoints/engine_client.py"
SPLIT_KV = "`_validate_split_kv_size` in envs.py"

NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class StartupRefusal:
    """What FastDeploy refuses and why, and the function that refuses it."""

    refused: str
    source: str

    @property
    def text(self) -> str:
        """The refusal as one line."""
        return f"{self.refused} ({self.source})"


def refusals(
    config: SchedulerConfig, formula: str, policy: Policy, requests: Sequence[WorkRequest] = ()
) -> list[StartupRefusal]:
    """What FastDeploy refuses in the version with this formula and policy; empty: it would serve everything."""
    return [
        *_sizes(config, _tokens_per_seq(config, formula, policy)),
        *_speculation(config),
        *_blocks(config),
        *_prompts(config, requests),
    ]


def refuse_unservable(recording: Recording, workload: Workload, formula: str, policy: Policy) -> None:
    """UsageError if FastDeploy, in the version with this formula and policy, would start with the recorded
    configuration but not with the workload's changed one.
    """
    recorded = refusals(SchedulerConfig.from_engine(recording.engine), formula, policy)
    before = {NUMBER.sub("", refusal.text) for refusal in recorded}
    for refusal in refusals(workload.config, formula, policy):
        if NUMBER.sub("", refusal.text) not in before:
            raise UsageError("FastDeploy would not start with these settings", why=refusal.text)


def _tokens_per_seq(config: SchedulerConfig, formula: str, policy: Policy) -> int:
    """Tokens of each sequence that must fit into a step: K + 1 since #7499; since #7623 only if a method is set."""
    if policy.preempt_decodes_only or formula == "pr7623":
        return config.num_draft_tokens + 1
    return config.num_speculative_tokens + 1 if formula == "pr7499" else 1


def _sizes(config: SchedulerConfig, tokens_per_seq: int) -> Iterator[StartupRefusal]:
    budget, seqs, length = config.max_num_batched_tokens, config.max_num_seqs, config.max_model_len
    if seqs > MOST_SEQUENCES:
        yield StartupRefusal(f"max_num_seqs {seqs} is more than {MOST_SEQUENCES}", CHECK)
    if length < LEAST_MODEL_LEN:
        yield StartupRefusal(f"max_model_len {length} is less than {LEAST_MODEL_LEN}", CHECK)
    if budget < seqs * tokens_per_seq:
        each = f" * {tokens_per_seq} tokens of a sequence" if tokens_per_seq > 1 else ""
        yield StartupRefusal(f"max_num_batched_tokens {budget} is less than max_num_seqs {seqs}{each}", CHECK)
    if budget > length * seqs:
        yield StartupRefusal(
            f"max_num_batched_tokens {budget} is more than max_num_seqs {seqs} * max_model_len {length}",
            CHECK,
        )
    if config.chunked_prefill and budget < config.block_size:
        yield StartupRefusal(
            f"max_num_batched_tokens {budget} is less than block_size {config.block_size}", CHECK
        )
    size = config.split_kv_size
    if size & (size - 1):
        yield StartupRefusal(f"FD_DETERMINISTIC_SPLIT_KV_SIZE {size} is no power of 2", SPLIT_KV)


def _speculation(config: SchedulerConfig) -> Iterator[StartupRefusal]:
    method, drafts = config.spec_method, config.num_speculative_tokens
    if method is None:
        return
    if method not in METHODS:
        yield StartupRefusal(f"spec_method {method} is none of {', '.join(METHODS)}", SPECULATION)
    elif method != "naive" and drafts > MOST_DRAFTS:
        yield StartupRefusal(f"num_speculative_tokens {drafts} is more than {MOST_DRAFTS}", SPECULATION)


def _blocks(config: SchedulerConfig) -> Iterator[StartupRefusal]:
    needed = config.max_blocks_per_seq + config.enc_dec_block_num
    if config.num_blocks < needed:
        yield StartupRefusal(
            f"num_blocks {config.num_blocks} is less than {needed}, the blocks of a sequence of max_model_len "
            f"{config.max_model_len} and of an extension",
            POSTPROCESS,
        )


def _prompts(config: SchedulerConfig, requests: Sequence[WorkRequest]) -> Iterator[StartupRefusal]:
    """A prompt must leave room for min_tokens (1 by default) and one token more."""
    too_long = [r.request_id for r in requests if r.num_prompt_tokens + 1 >= config.max_model_len]
    if too_long:
        more = f" and {len(too_long) - MOST_NAMED} more" if len(too_long) > MOST_NAMED else ""
        yield StartupRefusal(
            f"the prompt of {', '.join(too_long[:MOST_NAMED])}{more} leaves no room in max_model_len "
            f"{config.max_model_len}: answered with 400",
            ADMISSION,
        )

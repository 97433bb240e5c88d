"""A workload is taken strictly: what is wrong is refused with its place and the next step, what is odd is noted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fdtrace.cli import main
from fdtrace.recorder.errors import UsageError
from fdtrace.replayer import workload_from_case
from fdtrace.workload_file import read_case
from tests.fdtrace.test_simulate import CASES, case

Captured = pytest.CaptureFixture[str]

SIZES = {
    "max_num_seqs": 8,
    "num_blocks": 64,
    "block_size": 16,
    "max_num_batched_tokens": 128,
    "max_model_len": 512,
    "num_speculative_tokens": 2,
}


def small(request: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    plain = {"id": "a", "arrival": 0, "prompt": 20, "output": 4}
    return {**SIZES, "requests": [plain, {**plain, "id": "b", **(request or {})}], **changes}


def refused(value: Any) -> str:
    with pytest.raises(UsageError) as caught:
        workload_from_case(value)
    assert caught.value.hint or caught.value.why, "an error says what to do next, or why"
    return str(caught.value)


WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a typo": (small(max_num_batch_tokens=16), ("`max_num_batch_tokens`", "write `max_num_batched_tokens`")),
    "an engine's own name": (small(enable_chunked_prefill=False), ("FD_DISABLE_CHUNKED_PREFILL",)),
    "an unknown key of a request": (small({"priority": 5}), ("`requests[1].priority`",)),
    "a trace's name": (small({"input_length": 5}), ("`requests[1].input_length` write prompt",)),
    "an unknown variable": (
        small(env={"FD_ENC_DEC_BLOCKS_NUM": 1}),
        ("`env.FD_ENC_DEC_BLOCKS_NUM`", "write `FD_ENC_DEC_BLOCK_NUM`"),
    ),
    "false in quotation marks": (
        small(prefix_caching="false"),
        ("`prefix_caching` must be true or false, not 'false'",),
    ),
    "a number for a switch": (small({"discarded": 1}), ("`requests[1].discarded` must be true or false",)),
    "true for a number": (
        small({"prompt": True}),
        ("`requests[1].prompt` must be a whole number, not true",),
    ),
    "a fraction": (small({"arrival": 1.5}), ("`requests[1].arrival` must be a whole number",)),
    "a text for a number": (small(max_num_seqs="8"), ("`max_num_seqs` must be a whole number, not '8'",)),
    "a negative size": (small(num_blocks=-64), ("`num_blocks` must be a whole number",)),
    "a negative arrival": (small({"arrival": -1}), ("`requests[1].arrival`",)),
    "a huge number": (small({"output": 10**12}), ("`requests[1].output` must be at most",)),
    "null where a size must be": (small(num_blocks=None), ("lacks `num_blocks`", "it is null")),
    "a block larger than a sequence": (
        small(block_size=1024),
        ("`block_size` is 1024", "`max_model_len` is 512"),
    ),
    "a prompt over max_model_len": (small({"prompt": 600}), ("`requests[1].prompt` is 600", "512", "400")),
    "max_tokens under output": (
        small({"max_tokens": 3}),
        ("`requests[1].max_tokens` is 3", "its `output` is 4"),
    ),
    "an id that is a number": (small({"id": 7}), ("`requests[1].id` must be a text, not 7",)),
    "an empty id": (small({"id": ""}), ("`requests[1].id`",)),
    "an id with control characters": (small({"id": "\x1b[31m"}), ("`requests[1].id`", "cannot be shown")),
    "an id of half a character": (small({"id": "\ud800"}), ("`requests[1].id`",)),
    "a long id": (small({"id": "x" * 5000}), ("`requests[1].id` has 5000 characters",)),
    "equal ids": (small({"id": "a"}), ("the same `id`", "requests[0].id and requests[1].id")),
    "more accepted than drafted": (small({"accepts": [0, 3]}), ("`requests[1].accepts[1]` is 3",)),
    "true among acceptances": (small({"accepts": [True]}), ("`requests[1].accepts[0]` is true",)),
    "a text for a list": (small({"accepts": "11"}), ("`requests[1].accepts` must be a list",)),
    "a role that is none": (small(role="encoder"), ("unknown role 'encoder'",)),
    "a role that is a number": (small(role=1), ("`role` must be a text",)),
    "a method that is a number": (small(spec_method=1), ("`spec_method` must be a text",)),
    "a list for the variables": (small(env=[1]), ("`env` must be an object",)),
    "a negative extension": (
        small(env={"FD_ENC_DEC_BLOCK_NUM": -3}),
        ("`env.FD_ENC_DEC_BLOCK_NUM`", "0 or more"),
    ),
    "a word for a variable": (small(env={"FD_ENC_DEC_BLOCK_NUM": "two"}), ("`env.FD_ENC_DEC_BLOCK_NUM`",)),
    "true for a variable": (
        small(env={"FD_DISABLE_CHUNKED_PREFILL": True}),
        ("`env.FD_DISABLE_CHUNKED_PREFILL`",),
    ),
    "a switch of 2": (small(env={"FD_DISABLE_CHUNKED_PREFILL": 2}), ("must be 0 or 1",)),
    "no finite ratio": (small(env={"FD_INIT_NEW_TOKEN_RATIO": "nan"}), ("`env.FD_INIT_NEW_TOKEN_RATIO`",)),
    "no steps": (small(max_steps=0), ("`max_steps` must be at least 1",)),
    "a request that is none": (small(requests=[[]]), ("`requests[0]` is no object",)),
    "requests by name": (small(requests={"a": 1}), ("has no `requests`",)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_refused_with_its_place(kind: str) -> None:
    value, says = WRONG[kind]
    text = refused(value)
    for part in says:
        assert part in text


def test_all_unknown_keys_are_named_at_once() -> None:
    text = refused(small({"priority": 1}, max_num_batch_tokens=1, env={"FD_NOPE": 1}))
    assert all(name in text for name in ("max_num_batch_tokens", "env.FD_NOPE", "requests[1].priority"))
    many = refused(small({f"key{i}": i for i in range(20)}))
    assert "and 12 more" in many


def test_null_is_as_good_as_not_there() -> None:
    nulls = {"abort_after": None, "accepts": None, "max_tokens": None, "group": None, "join_after": None}
    read = workload_from_case(small(nulls, num_speculative_tokens=None, env=None, role=None, max_steps=None))
    plain = workload_from_case({**small(), "num_speculative_tokens": 0})
    assert (read.config, read.requests) == (plain.config, plain.requests)


def test_requests_are_sorted_by_arrival_and_stay_in_order_otherwise() -> None:
    arrivals = {"a": 7, "b": 2, "c": 7, "d": 0}
    requests = [{"id": name, "arrival": at, "prompt": 5, "output": 2} for name, at in arrivals.items()]
    read = workload_from_case(small(requests=requests))
    assert [request.request_id for request in read.requests] == ["d", "b", "a", "c"]


def test_output_ends_at_max_model_len_and_says_so() -> None:
    read = workload_from_case(small({"prompt": 500, "output": 60}))
    assert read.requests[1].num_output_tokens == 12
    assert read.notes == ("requests[1].output: b ends at max_model_len, after 12 of its 60 tokens",)


def test_a_variable_of_fastdeploy_that_is_not_modelled_is_noted() -> None:
    read = workload_from_case(small(env={"FD_LOG_DIR": "/tmp", "FD_ENC_DEC_BLOCK_NUM": "3"}))
    assert read.config.enc_dec_block_num == 3
    assert len(read.notes) == 1
    assert "FD_LOG_DIR" in read.notes[0]


@pytest.mark.parametrize("name", CASES)
def test_the_labs_cases_load_as_they_are(name: str) -> None:
    read = workload_from_case(read_case(Path(case(name))))
    assert read.notes == ()
    assert [request.arrival for request in read.requests] == [
        one["arrival"] for one in (read.case or {})["requests"]
    ]


def test_every_key_of_the_lab_is_known() -> None:
    lab: dict[str, Any] = {
        "worker": "inline",
        "wait_for_preprocess": True,
        "spec_method": "ngram",
        "seed": 3,
        "prompts": [1],
        "outputs": [2],
        "prefix_groups": 2,
        "shared_tokens": 10,
        "abort": 0.1,
        "backlog": 4,
        "rate": 2.5,
        "num_requests": 9,
        "step_s": 0.005,
    }
    assert len(workload_from_case(small(**lab)).requests) == 2


# The file ----------------------------------------------------------------------------------------------------

DEEP = "[" * 100_000 + "]" * 100_000
TEXTS = {
    "JSON lines": (
        '{"sent": 5}\n{"sent": 6}\n',
        ("JSON lines", "fdtrace workload FILE --format", "`requests`"),
    ),
    "nothing": ("", ("is empty",)),
    "words": ("no JSON at all", ("is no JSON",)),
    "nesting": (DEEP, ("nested too deep",)),
    "nesting of a member": ('{"requests": ' + DEEP + "}", ("nested too deep",)),
    "NaN": (json.dumps(small()).replace("128", "NaN"), ("NaN is no number",)),
    "Infinity": (json.dumps(small()).replace("128", "-Infinity"), ("-Infinity is no number",)),
    "many digits": (
        json.dumps(small()).replace("128", "1" * 6000),
        ("`max_num_batched_tokens` must be at most",),
    ),
    "a key twice": (json.dumps(small())[:-1] + ', "max_num_seqs": 4}', ("`max_num_seqs` is there twice",)),
    "a key of a request twice": (
        json.dumps(small()).replace('"id": "b"', '"id": "b", "prompt": 3'),
        ("`prompt` is there twice in `requests[1]`",),
    ),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_file_that_is_no_workload(kind: str, tmp_path: Path, capsys: Captured) -> None:
    text, says = TEXTS[kind]
    path = tmp_path / "workload.json"
    path.write_text(text)
    assert main(["simulate", str(path), "-f", "original"]) == 2
    said = capsys.readouterr()
    for part in says:
        assert part in said.err
    assert "fault in fdtrace" not in said.err
    assert said.out == ""


def test_bytes_that_are_no_text(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "workload.json"
    path.write_bytes(json.dumps(small()).encode("utf-16"))
    assert main(["simulate", str(path), "-f", "original"]) == 2
    assert "is not UTF-8" in capsys.readouterr().err
    assert main(["simulate", str(tmp_path), "-f", "original"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "workload.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(small()).encode())
    assert main(["simulate", str(path), "-f", "original", "--decisions", str(tmp_path / "out")]) == 0

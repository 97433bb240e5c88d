"""`fdtrace workload`: every format from a small file made by its published rules; what is wrong is refused with its
line and field.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from fdtrace.cli import main
from fdtrace.replayer import workload_from_case
from fdtrace.request_traces.acceptances import acceptances_at
from fdtrace.request_traces.safe_json import CHUNK, json_elements
from fdtrace.request_traces.trace_formats import FORMATS

Captured = pytest.CaptureFixture[str]


def lines(*values: dict[str, Any]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def turn(speaker: str, text: str) -> dict[str, str]:
    return {"from": speaker, "value": text}


MOONCAKE = lines(
    {"timestamp": 27482, "input_length": 1500, "output_length": 52, "hash_ids": [46, 47, 48]},
    {"timestamp": 30535, "input_length": 1030, "output_length": 26, "hash_ids": [46, 47, 2353]},
)
BAILIAN = lines(
    {"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.1, "input_length": 40, "output_length": 132,
     "type": "text", "turn": 1, "hash_ids": [1089, 1090, 1091]},
    {"chat_id": 160, "parent_chat_id": 159, "timestamp": 62.5, "input_length": 60, "output_length": 8,
     "type": "text", "turn": 2, "hash_ids": [1089, 1090, 1092, 1093]},
)  # fmt: skip
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,API log\n118,GPT-4,417,276,693,API log\n"
)
SHAREGPT = json.dumps(
    [
        {"id": "x_0", "conversations": [turn("human", "a" * 400), turn("gpt", "b" * 80), turn("human", "c")]},
        {"id": "x_1", "conversations": [turn("human", "a")]},
        {"id": "x_2", "conversations": [turn("human", "ä" * 8), turn("gpt", "b" * 4)]},
    ]
)
VLLM = lines({"prompt": "What is the capital of India?", "output_tokens": 10}, {"prompt": "x" * 40})
AIPERF = lines(
    {"text": "a" * 40, "timestamp": 1000, "output_length": 7},
    {"session_id": "s", "turns": [{"text": "b" * 80, "timestamp": 1400.5, "output_length": 9}]},
)
INPUTS = json.dumps(
    {
        "data": [
            {
                "session_id": "s",
                "payloads": [{"messages": [{"role": "user", "content": "q" * 20}], "max_tokens": 6}],
            },
            {"session_id": "t", "payloads": [{"prompt": "q" * 12, "max_completion_tokens": 3}]},
        ]
    }
)
GUIDELLM = "prompt,prompt_tokens_count,output_tokens_count\nhello,100,20\nworld,50,10\n"

READ = {
    "mooncake": (MOONCAKE, [(0, 1500, 52), (152, 1030, 26)]),
    "bailian": (BAILIAN, [(0, 40, 132), (70, 60, 8)]),
    "azure": (AZURE, [(0, 374, 44), (215, 396, 109)]),
    "burstgpt": (BURSTGPT, [(0, 472, 18), (5650, 417, 276)]),
    "sharegpt": (SHAREGPT, [(0, 100, 20), (0, 2, 1)]),
    "vllm": (VLLM, [(0, 7, 10), (0, 10, 33)]),
    "aiperf": (AIPERF, [(0, 10, 7), (20, 20, 9)]),
    "aiperf-inputs": (INPUTS, [(0, 5, 6), (0, 3, 3)]),
    "guidellm": (GUIDELLM, [(0, 100, 20), (0, 50, 10)]),
}
"""Format -> a file, and arrival (steps of 20 ms), prompt and output of each request."""


def made(tmp_path: Path, text: str | bytes, *options: str) -> dict[str, Any]:
    source, out = tmp_path / "trace", tmp_path / "case.json"
    source.write_bytes(text.encode() if isinstance(text, str) else text)
    assert main(["workload", str(source), "-o", str(out), "--force", *options]) == 0
    case: dict[str, Any] = json.loads(out.read_text())
    workload_from_case(case)
    return case


def shape(case: dict[str, Any]) -> list[tuple[int, int, int]]:
    return [(request["arrival"], request["prompt"], request["output"]) for request in case["requests"]]


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_recognised_and_read(name: str, tmp_path: Path, capsys: Captured) -> None:
    text, expected = READ[name]
    case = made(tmp_path, text, "--output-tokens", "33")
    assert f"2 requests of {name} in" in capsys.readouterr().err
    assert shape(case) == expected
    assert case == made(tmp_path, text, "--output-tokens", "33", "--format", name)
    assert case == made(tmp_path, gzip.compress(text.encode()), "--output-tokens", "33")
    assert case == made(
        tmp_path, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), "--output-tokens", "33"
    )


def test_what_is_assumed_is_said_and_kept_in_the_case(tmp_path: Path, capsys: Captured) -> None:
    case = made(tmp_path, SHAREGPT)
    said = " ".join(case["notes"])
    for part in (
        "assumed: max_num_batched_tokens 8192, max_num_seqs 256, num_blocks 8192, block_size 64, max_model_len 32768",
        "has no times",
        "characters by 4",
        "conversations without an answer are left out, as vLLM's loader does (1)",
        "turns after the first answer are left out, as vLLM's loader does (1)",
    ):
        assert part in said
    assert all(note in capsys.readouterr().err for note in case["notes"][:1])
    assert workload_from_case(case).notes == tuple(case["notes"])


def test_options_take_the_place_of_what_is_assumed(tmp_path: Path) -> None:
    options = ["--step-ms", "1000", "--set", "max_num_seqs=8", "--set", "num_blocks=4000", "--time-unit", "s"]
    case = made(tmp_path, MOONCAKE, *options, "--first", "1")
    assert (case["max_num_seqs"], case["num_blocks"], len(case["requests"])) == (8, 4000, 1)
    assert made(tmp_path, MOONCAKE, *options)["requests"][1]["arrival"] == 3053
    renamed = MOONCAKE.replace("input_length", "plen")
    assert (
        shape(made(tmp_path, renamed, "--format", "mooncake", "--label", "input_length=plen"))
        == READ["mooncake"][1]
    )
    rated = made(tmp_path, VLLM * 200, "--rate", "10", "--output-tokens", "5")["requests"][-1]["arrival"]
    assert 1500 < rated < 2500  # 400 requests at 10 a second are 40 s, and a step is 20 ms


def test_acceptances_are_drawn_for_a_rate() -> None:
    drawn = acceptances_at(0.7, 3, seed=1)
    accepts = drawn.drawn(60_000)
    assert abs(drawn.rate - 0.7) < 1e-9
    assert abs(sum(accepts) / len(accepts) / 3 - 0.7) < 0.01
    assert 60_000 <= 1 + sum(accepts) + len(accepts) < 60_004
    assert (
        acceptances_at(0.7, 3, seed=1).drawn(500)
        == acceptances_at(0.7, 3, seed=1).drawn(500)
        != drawn.drawn(500)
    )
    assert set(acceptances_at(1.0, 2, seed=0).drawn(50)) == {2}
    assert set(acceptances_at(0.0, 2, seed=0).drawn(50)) == {0}


def test_accept_fills_the_case(tmp_path: Path) -> None:
    case = made(tmp_path, AZURE, "--accept", "0.5", "--drafts", "2")
    assert case["num_speculative_tokens"] == 2
    assert all(1 + sum(r["accepts"]) + len(r["accepts"]) >= r["output"] for r in case["requests"])


DEEP = "[" * 100_000
REFUSED: dict[str, tuple[str | bytes, str]] = {
    "a field that is missing": (
        lines({"input_length": 5, "output_length": 1}, {"output_length": 3}),
        "line 2 has no `input",
    ),
    "a text for a length": (
        lines({"input_length": "many", "output_length": 3}),
        "line 1: `input_length` is 'many'",
    ),
    "a length of 0": (lines({"input_length": 0, "output_length": 3}), "`input_length` is 0"),
    "half a token": (lines({"input_length": 1.5, "output_length": 3}), "`input_length` is 1.5"),
    "a true length": (lines({"input_length": True, "output_length": 3}), "`input_length` is true"),
    "a huge length": (
        lines({"input_length": 10**30, "output_length": 3}),
        "must be a whole number from 1 to",
    ),
    "endless digits": ('{"input_length": ' + "9" * 5000 + "}\n", "line 1 is no JSON"),
    "infinite time": ('{"input_length": 5, "output_length": 3, "timestamp": 1e999}\n', "`timestamp` is inf"),
    "NaN": ('{"input_length": 5, "output_length": NaN}\n', "NaN is no number of JSON"),
    "a key twice": ('{"input_length": 5, "input_length": 6}\n', "the key 'input_length' is there twice"),
    "no JSON": ('{"input_length": 5, "output_length": 3}\n{"input_length": 5,\n', "line 2 is no JSON"),
    "a list in a line": ('{"input_length": 5, "output_length": 3}\n[1]\n', "line 2 is a list"),
    "deep nesting": (f'{{"input_length": 5, "output_length": 1, "x": 1}}\n{{"x": {DEEP}', "nested too deep"),
    "too many ids": (
        lines({"input_length": 512, "output_length": 1, "hash_ids": [1, 2]}),
        "a prompt of 512 tokens has 1 blocks of 512",
    ),
    "an id that is none": (lines({"input_length": 5, "output_length": 1, "hash_ids": [None]}), "holds null"),
    "time that goes back": (
        lines(*({"input_length": 5, "output_length": 1, "timestamp": at} for at in (50, 40))),
        "line 2 came 10 ms before the first",
    ),
    "a time only here": (
        lines(
            {"input_length": 5, "output_length": 1}, {"input_length": 5, "output_length": 1, "timestamp": 1}
        ),
        "line 2 has a time",
    ),
    "no output": (lines({"prompt": "x"}), "line 1 does not say how many tokens come out"),
    "another moment": (
        AZURE.replace("2023-11-16 18:15:50", "16.11.2023"),
        "line 3: `TIMESTAMP` is '16.11.2023",
    ),
    "a moment that never was": (AZURE.replace("11-16 18:15:50", "13-41 18:15:50"), "line 3: `TIMESTAMP`"),
    "a field too few": (AZURE + "2023-11-16 18:15:51,1\n", "line 4 has 2 fields"),
    "a negative count": (AZURE.replace(",396,", ",-396,"), "line 3: `ContextTokens` is '-396'"),
    "an open quote": (AZURE + '"2023', "line 4 is no CSV"),
    "a list that ends early": (SHAREGPT[:-1], "the file ends before its list does"),
    "an element that is none": ('[{"conversations": []}, 7]', "element [1] is no object"),
    "turns that are none": ('[{"conversations": [1, 2]}]', "element [0]: `conversations` is a list"),
    "UTF-16": (b"\xff\xfe" + MOONCAKE.encode("utf-16-le"), "is not UTF-8"),
    "latin-1": (MOONCAKE.encode() + '{"prompt": "ä"}'.encode("latin-1"), "line 3 is not UTF-8"),
    "cut gzip": (gzip.compress(MOONCAKE.encode() * 500)[:-40], "cannot be read"),
    "nothing known": ("a,b\n1,2\n", "no request trace that fdtrace knows"),
    "nothing": ("", "no request trace that fdtrace knows"),
    "a case": ('{"max_num_seqs": 3, "requests": []}', "no request trace that fdtrace knows"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_is_refused_with_its_place(kind: str, tmp_path: Path, capsys: Captured) -> None:
    text, message = REFUSED[kind]
    source, out = tmp_path / "trace", tmp_path / "case.json"
    source.write_bytes(text.encode() if isinstance(text, str) else text)
    assert main(["workload", str(source), "-o", str(out)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "next: " in said or "why: " in said
    assert [path.name for path in tmp_path.iterdir()] == ["trace"], "nothing half is left behind"


def test_options_that_make_no_sense(tmp_path: Path, capsys: Captured) -> None:
    source, out = tmp_path / "trace", tmp_path / "case.json"
    source.write_text(MOONCAKE)
    wrong = {
        "there is no format 'moon'": ["--format", "moon"],
        "--accept is 1.5": ["--accept", "1.5"],
        "--drafts without --accept": ["--drafts", "2"],
        "--step-ms is nan": ["--step-ms", "nan"],
        "keys that nobody reads: `max_seqs`": ["--set", "max_seqs=3"],
        "`max_num_seqs` must be a whole number": ["--set", "max_num_seqs=many"],
        "--label 'prompt=x' assigns nothing": ["--label", "prompt=x"],
    }
    for message, options in wrong.items():
        assert main(["workload", str(source), "-o", str(out), *options]) == 2
        assert message in capsys.readouterr().err
    assert main(["workload", str(source), "-o", str(source), "--force"]) == 2
    assert "is what is read" in capsys.readouterr().err
    out.write_text("mine")
    assert main(["workload", str(source), "-o", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_ids_and_control_characters_of_a_trace_do_not_reach_the_terminal(
    tmp_path: Path, capsys: Captured
) -> None:
    source = tmp_path / "trace"
    source.write_text(lines({"input_length": "\x1b]0;x\x07", "output_length": 1}))
    assert main(["workload", str(source), "-o", str(tmp_path / "c.json")]) == 2
    assert "\x1b" not in capsys.readouterr().err
    case = {
        "max_num_batched_tokens": 64,
        "max_num_seqs": 1,
        "num_blocks": 9,
        "max_model_len": 512,
        "requests": [],
    }
    source.write_text(json.dumps({**case, "notes": ["\x1b[31mred"]}))
    assert main(["simulate", str(source), "-f", "pr7499"]) == 0
    assert "\x1b" not in capsys.readouterr().err


def test_a_long_list_is_read_in_pieces(tmp_path: Path) -> None:
    source = tmp_path / "list"
    elements = [{"n": i, "text": "ü" * (CHUNK // 3)} for i in range(9)]
    source.write_text(json.dumps(elements, ensure_ascii=False), encoding="utf-8")
    assert [value for _, value in json_elements(source, r"\[", "e")] == elements


def test_simulate_and_sweep_take_a_request_trace(tmp_path: Path, capsys: Captured) -> None:
    source, case = tmp_path / "trace.jsonl", tmp_path / "case.json"
    source.write_text(MOONCAKE)
    assert main(["workload", str(source), "-o", str(case)]) == 0
    capsys.readouterr()
    assert main(["simulate", str(case), "-f", "pr7499"]) == 0
    expected = capsys.readouterr().out
    assert main(["simulate", str(source), "-f", "pr7499"]) == 0
    assert capsys.readouterr().out == expected
    sweep = ["sweep", str(source), "-f", "pr7499", "--vary", "max_num_seqs=1,2", "--jobs", "1", "--json"]
    assert main(sweep) == 0
    assert json.loads(capsys.readouterr().out)["num_allowed"] == 2
    assert main(["simulate", str(case), "-f", "pr7499", "--step-ms", "5"]) == 2
    assert "--step-ms says how such a trace is read" in capsys.readouterr().err

"""vLLM used as a library, scheduler and model in this process: `python in_process.py MODEL`, in vLLM's environment.

It prints the tokens of the prompts and those generated.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Generate from a dozen prompts."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        sys.argv[1], enforce_eager=True, dtype="float32", max_model_len=512, max_num_batched_tokens=128,
        max_num_seqs=8, distributed_executor_backend="uni",
        speculative_config={"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3},
    )  # fmt: skip
    prompts = [" ".join(f"w{3 + (i * j) % 40}" for j in range(20 + 17 * i)) for i in range(12)]
    made = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True))
    prompt = sum(len(output.prompt_token_ids) for output in made)
    print(prompt, sum(len(output.outputs[0].token_ids) for output in made), flush=True)


if __name__ == "__main__":
    main()

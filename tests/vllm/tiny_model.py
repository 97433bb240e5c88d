"""A tiny random Llama, made on the spot: `python tiny_model.py DIRECTORY [LAYERS]`, in an environment that has vLLM."""

from __future__ import annotations

import json
import sys
from pathlib import Path

VOCABULARY = 256


def save_tokenizer(directory: Path) -> None:
    """A word-level tokenizer of `VOCABULARY` made-up words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>",
        "model_max_length": 1024,
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(about))


def save_model(directory: Path, layers: int) -> None:
    """64 wide, random weights of a fixed seed: what it says repeats itself, so n-grams are found."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False, torch_dtype="float32",
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)


def main() -> None:
    """Make the model in the directory that is named, unless it is there already."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "model.safetensors").exists():
        save_tokenizer(directory)
        save_model(directory, layers=int(sys.argv[2]) if len(sys.argv) > 2 else 2)


if __name__ == "__main__":
    main()

"""Makes two tiny Llamas, as real servers load them, in a second.

    python tiny_llama.py FOLDER      makes FOLDER/tiny-a and FOLDER/tiny-b

They are 256 wide, with two layers and a vocabulary of 400 pieces. Their weights are random, but after
each piece a certain word is the likeliest by far: so they say the same words again, each its own, and
no garbage of bytes, which `llmux validate` would not accept. Needs numpy, safetensors and tokenizers,
which come with vLLM.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    trainers,
)

WIDTH, INNER, LAYERS, HEADS, VOCABULARY = 256, 512, 2, 4, 400
SPECIAL = ["<s>", "</s>"]

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": SPECIAL[0],
    "eos_token": SPECIAL[1],
    "model_max_length": 8192,
}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def make(folder: Path, seed: int) -> None:
    """Write a model into a new folder."""
    folder.mkdir(parents=True)
    tokenizer = _tokenizer()
    words = [number for piece, number in tokenizer.get_vocab().items() if is_word(piece)]
    save_file(_weights(seed, sorted(words)), folder / "model.safetensors", {"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**TOKENIZER_CONFIG, "chat_template": TEMPLATE}, indent=2)
    )


def is_word(piece: str) -> bool:
    """Whether a piece begins a word; the tokenizer writes its space as Ġ."""
    return piece.startswith("Ġ") and len(piece) > 2 and piece[1:].isascii() and piece[1:].isalpha()


def _weights(seed: int, words: list[int]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:  # too small to turn away what the embedding says
        return random.normal(0, 0.02, shape).astype(np.float32)

    pieces = random.normal(0, 1, (VOCABULARY, WIDTH)).astype(np.float32)
    head = np.zeros_like(pieces)
    order = random.permutation(words)
    for place, number in enumerate(order):  # each word leads to the next
        head[order[(place + 1) % len(order)]] += pieces[number]
    for number in set(range(VOCABULARY)) - set(words):
        head[order[number % len(order)]] += pieces[number]
    ones = np.ones(WIDTH, np.float32)
    weights = {
        "model.embed_tokens.weight": pieces,
        "model.norm.weight": ones,
        "lm_head.weight": head,
    }
    for layer in range(LAYERS):
        of = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weights[f"{of}self_attn.{name}.weight"] = drawn(WIDTH, WIDTH)
        weights[f"{of}mlp.gate_proj.weight"] = drawn(INNER, WIDTH)
        weights[f"{of}mlp.up_proj.weight"] = drawn(INNER, WIDTH)
        weights[f"{of}mlp.down_proj.weight"] = drawn(WIDTH, INNER)
        weights[f"{of}input_layernorm.weight"] = ones
        weights[f"{of}post_attention_layernorm.weight"] = ones
    return weights


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(__file__).read_text()], trainer)
    return tokenizer


def main() -> None:
    for seed, name in enumerate(("tiny-a", "tiny-b"), start=1):
        make(Path(sys.argv[1]) / name, seed)


if __name__ == "__main__":
    main()

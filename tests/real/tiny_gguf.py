"""Makes a tiny Llama model with random weights, 0.5 MB, which a real server loads in a moment.

    python tiny_gguf.py NAME FILE.gguf SEED

Needs the packages `gguf` and `numpy`, which `tests/real.sh` installs into an environment of its own.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

VOCABULARY = 3 + 256
WIDTH = 64
LAYERS = 2
HEADS = 4
INNER = 128
CONTEXT = 512
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"

UNKNOWN, CONTROL, BYTE = 2, 3, 6
"""Token types of GGUF."""


def write_model(name: str, path: str, seed: int) -> None:
    """Write the file; the same seed makes the same model."""
    gguf: Any = import_module("gguf")
    numpy: Any = import_module("numpy")
    random = numpy.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, name)

    def add(tensor: str, *shape: int) -> None:
        values = random.standard_normal(shape) * 0.05
        writer.add_tensor(tensor, values.astype(numpy.float32))

    def add_norm(tensor: str) -> None:
        writer.add_tensor(tensor, numpy.ones(WIDTH, numpy.float32))

    add("token_embd.weight", VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        add_norm(f"{block}.attn_norm.weight")
        add_norm(f"{block}.ffn_norm.weight")
        for part in ("q", "k", "v", "output"):
            add(f"{block}.attn_{part}.weight", WIDTH, WIDTH)
        add(f"{block}.ffn_gate.weight", INNER, WIDTH)
        add(f"{block}.ffn_up.weight", INNER, WIDTH)
        add(f"{block}.ffn_down.weight", WIDTH, INNER)
    add_norm("output_norm.weight")
    add("output.weight", VOCABULARY, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)


if __name__ == "__main__":
    write_model(sys.argv[1], sys.argv[2], int(sys.argv[3]))

"""Tiny random checkpoints, and transformers' own greedy tokens for them: ``python -m demo.checkpoint``.

Runs in the environment (torch, transformers, tokenizers). The same versions of these write the same bytes every time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 512
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>")
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
_CORPUS = """\
The quick brown fox jumps over the lazy dog. A compute unit runs wavefronts of sixty-four lanes, and each lane
owns vector registers. Matrix instructions multiply small tiles and accumulate them in single precision. The
scheduler batches requests, prefills their prompts, then decodes one token for every running request at each
step. Keys and values stay in pages of a cache that is shared between requests with a common prefix. A
normalisation divides by the root mean square and scales with a learned weight. Attention compares a query with
all the keys before it, and mixes the values by how well they match. Experts are small networks; a router picks
a few of them for every token. What is measured can be improved, and what is improved should be measured again.
Good software says what it does, does what it says, and can be switched off.
"""


@dataclass(frozen=True)
class Kind:
    """A model architecture this module can make a checkpoint of.

    ``build`` returns the model with whatever weights; ``spread`` maps a parameter's name to the standard deviation its
    weights are drawn with; ``config_extra`` is merged into config.json; ``seed`` was picked among many for greedy
    tokens that vary and that win by a margin bf16 cannot bridge.
    """

    build: Callable[[], Any]
    spread: Callable[[str], float]
    config_extra: dict[str, object]
    seed: int


def _transformers() -> Any:
    """transformers, imported such that it leaves torchvision alone.

    The index's torchvision is a CUDA build; beside a CPU torch its import fails, and every model's import with it.
    """
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]  # how the import system spells "absent"
    import transformers

    return transformers


def _gemma2() -> Any:
    transformers = _transformers()
    return transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            query_pre_attn_scalar=16,
            max_position_embeddings=512,
            sliding_window=128,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        )
    )


def _gemma2_spread(name: str) -> float:
    if "norm" in name:
        # Gemma stores w and scales with 1 + w. Its default of zero would hide a norm that forgets the one.
        return 0.5
    if "embed" in name:
        # The embedding is also the head: with a larger one every token predicts itself, over and over.
        return 0.02
    return 0.15


def _qwen3_vl() -> Any:
    transformers = _transformers()
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,  # the smallest that a fused attention prologue is written for
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "default", "mrope_section": [12, 10, 10], "mrope_interleaved": True},
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
        "patch_size": 16,
        "deepstack_visual_indexes": [0],
    }
    image = {"image_token_id": 508, "video_token_id": 509, "vision_start_token_id": 510, "vision_end_token_id": 511}
    return transformers.Qwen3VLForConditionalGeneration(
        transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **image)
    )


def _qwen3_vl_spread(name: str) -> float:
    if "embed" in name or "lm_head" in name:
        return 0.2
    # Norms are scaled with the weight itself; the query and key norms far from one make attention sharp, so that wrong
    # positions show in the tokens.
    return 1.0 if "norm" in name else 0.15


KINDS = {
    "gemma2": Kind(_gemma2, _gemma2_spread, {"hidden_act": "gelu_pytorch_tanh"}, seed=12),
    "qwen3-vl": Kind(_qwen3_vl, _qwen3_vl_spread, {}, seed=2),
}


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer of VOCABULARY tokens, trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_CORPUS], trainer)
    return tokenizer


def readable_tokens(tokenizer: Tokenizer) -> torch.Tensor:
    """Mask, shape [VOCABULARY] and dtype bool, of the tokens that decode to printable ASCII."""
    texts = [tokenizer.decode([token], skip_special_tokens=True) for token in range(VOCABULARY)]
    return torch.tensor([text.isascii() and text.isprintable() and text != "" for text in texts])


def write_checkpoint(folder: Path, kind: str = "gemma2") -> None:
    """Write a random checkpoint of this kind, in bf16, with its tokenizer; an existing folder is replaced.

    Raises KeyError for an unknown kind.
    """
    recipe = KINDS[kind]
    generator = torch.Generator().manual_seed(recipe.seed)
    tokenizer = make_tokenizer()
    model = recipe.build()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=recipe.spread(name), generator=generator)
        # An unreadable token keeps a small logit, so what the model says can be printed and it never stops early.
        model.get_output_embeddings().weight[~readable_tokens(tokenizer)] *= 0.05
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.to(torch.bfloat16).save_pretrained(partial)
    config = json.loads((partial / "config.json").read_text()) | recipe.config_extra
    (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tokenizer.save(str(partial / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[1],
        "bos_token": SPECIAL_TOKENS[2],
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (partial / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


@dataclass(frozen=True)
class Greedy:
    """Greedy tokens for one prompt and, for each, by how much its logit beat the second best."""

    tokens: list[int]
    margins: list[float]


def greedy(folder: Path, prompt: Sequence[int], count: int, dtype: torch.dtype) -> Greedy:
    """transformers' own answer: ``count`` greedy tokens after ``prompt``, computed in ``dtype`` without a cache."""
    transformers = _transformers()
    (architecture,) = transformers.AutoConfig.from_pretrained(folder).architectures
    model = getattr(transformers, architecture).from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    sequence, margins = list(prompt), []
    with torch.no_grad():
        for _ in range(count):
            best = model(input_ids=torch.tensor([sequence])).logits[0, -1].float().topk(2)
            sequence.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
    return Greedy(sequence[len(prompt) :], margins)


def expectation(folder: Path, text: str, count: int) -> dict[str, object]:
    """What a server of this checkpoint has to answer to ``text`` in bf16, and the ids in fp32 beside it."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = tokenizer.encode(text).ids
    served = greedy(folder, prompt, count, torch.bfloat16)
    exact = greedy(folder, prompt, count, torch.float32)
    return {
        "prompt": text,
        "prompt_ids": prompt,
        "bfloat16": served.tokens,
        "float32": exact.tokens,
        "smallest_margin": min(exact.margins),
        "text": tokenizer.decode(served.tokens, skip_special_tokens=True),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.checkpoint", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="write the checkpoint here")
    parser.add_argument("--kind", choices=sorted(KINDS), default="gemma2")
    parser.add_argument(
        "--expect", type=int, metavar="N", help="print, as JSON lines, the N greedy tokens after each prompt"
    )
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="a prompt for --expect; repeatable"
    )
    arguments = parser.parse_args(argv)
    if arguments.expect is not None and (arguments.expect < 1 or not arguments.prompt):
        parser.error(f"--expect {arguments.expect} needs a positive count and at least one --prompt")
    write_checkpoint(arguments.out, arguments.kind)
    for text in arguments.prompt if arguments.expect else ():
        print(json.dumps(expectation(arguments.out, text, arguments.expect)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

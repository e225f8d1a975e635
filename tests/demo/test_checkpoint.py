"""The checkpoint is reproducible, and wrong arithmetic shows in its tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from demo import checkpoint
from demo.__main__ import PROMPTS, TOKENS
from tests.engine.generate import PROMPTS as ENGINE_PROMPTS


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "gemma2"
    checkpoint.write_checkpoint(folder)
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_same_bytes_every_time(gemma2: Path, tmp_path: Path) -> None:
    torch.manual_seed(1234)  # the checkpoint must not depend on global state
    checkpoint.write_checkpoint(tmp_path / "again")
    assert _contents(tmp_path / "again") == _contents(gemma2)


def test_writing_replaces_what_was_there(gemma2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gemma2"
    folder.mkdir()
    (folder / "stale.safetensors").write_bytes(b"old")
    checkpoint.write_checkpoint(folder)
    assert set(_contents(folder)) == set(_contents(gemma2))


def test_unknown_kind_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="gpt9"):
        checkpoint.write_checkpoint(tmp_path / "x", "gpt9")
    assert not list(tmp_path.iterdir())


def test_every_norm_weight_is_away_from_zero(gemma2: Path) -> None:
    norms = {name: weight for name, weight in load_file(gemma2 / "model.safetensors").items() if "norm" in name}
    assert len(norms) == 9  # four in each of two layers, and the last
    assert all(weight.float().std() > 0.3 for weight in norms.values())


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_vary_are_readable_and_do_not_depend_on_precision(gemma2: Path, prompt: str) -> None:
    answer = checkpoint.expectation(gemma2, prompt, TOKENS)
    tokens, text = answer["bfloat16"], answer["text"]
    assert isinstance(tokens, list) and isinstance(text, str)
    assert tokens == answer["float32"]
    assert len(set(tokens)) >= 8
    assert text.isascii() and text.isprintable()


def test_norm_that_forgets_the_one_changes_the_tokens(gemma2: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    checkpoint.write_checkpoint(wrong)
    weights = load_file(wrong / "model.safetensors")
    # 1 + (w - 1) = w: under these weights a right norm computes what a wrong norm computes under the true ones.
    shifted = {name: weight - 1 if "norm" in name else weight for name, weight in weights.items()}
    save_file(shifted, wrong / "model.safetensors", metadata={"format": "pt"})
    prompt = checkpoint.make_tokenizer().encode(PROMPTS[0]).ids
    right = checkpoint.greedy(gemma2, prompt, TOKENS, torch.float32)
    assert checkpoint.greedy(wrong, prompt, TOKENS, torch.float32).tokens != right.tokens


def test_margins_are_those_of_the_chosen_tokens(gemma2: Path) -> None:
    answer = checkpoint.greedy(gemma2, [5, 6, 7], 4, torch.float32)
    assert len(answer.tokens) == len(answer.margins) == 4
    assert min(answer.margins) > 0


def test_command_line_prints_one_json_line_for_each_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path / "made"), "--expect", "2", "--prompt", "a", "--prompt", "b c"]
    assert checkpoint.main(arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["a", "b c"]
    assert [len(line["bfloat16"]) for line in lines] == [2, 2]


def test_expect_without_a_prompt_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        checkpoint.main(["--out", str(tmp_path / "made"), "--expect", "2"])
    assert "--prompt" in capsys.readouterr().err


def test_tokens_of_qwen3_vl_do_not_depend_on_precision_but_on_positions(tmp_path: Path) -> None:
    folder = tmp_path / "qwen3-vl"
    checkpoint.write_checkpoint(folder, "qwen3-vl")

    def tokens(dtype: torch.dtype) -> list[list[int]]:
        return [checkpoint.greedy(folder, prompt, 8, dtype).tokens for prompt in ENGINE_PROMPTS]

    right = tokens(torch.float32)
    assert right == tokens(torch.bfloat16)
    assert all(len(set(answer)) >= 6 for answer in right)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_theta"] = 100.0
    (folder / "config.json").write_text(json.dumps(config))
    assert all(wrong != answer for wrong, answer in zip(tokens(torch.float32), right, strict=True))

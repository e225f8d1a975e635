"""What only a GPU shows of `amd-sglang verify`: graphs, clocks, and kernels that are wrong only when replayed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from overlay.verify import shapes
from overlay.verify.case import Case
from overlay.verify.device import find
from overlay.verify.measure import measure
from overlay.verify.shapes import Model, Shapes
from patches.proofs import argmax, gemma_rmsnorm, mhc, qk_norm_mrope, sparse_mla

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ROOT = Path(__file__).parents[2]
#: One batch of each kind, and models that reach every kernel.
FEW = replace(shapes.served(), tokens=(1, 64), prefill=300, large=(64,))
PROOFS = [
    gemma_rmsnorm.cases,
    argmax.cases,
    argmax.in_place_cases,
    qk_norm_mrope.cases,
    mhc.cases,
    sparse_mla.cases,
]


@pytest.fixture(scope="module")
def gpu() -> torch.device:
    device, facts = find({})
    assert not facts.interpreted and facts.arch
    return device


def in_dtype(models: Sequence[Model], dtype: str) -> tuple[Model, ...]:
    return tuple(replace(model, dtype=dtype) for model in models)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("cases", PROOFS, ids=lambda cases: f"{cases.__module__.rpartition('.')[2]}.{cases.__name__}")
def test_every_case_passes_is_replayed_and_timed(
    cases: Callable[[Shapes], Sequence[Case]], dtype: str, gpu: torch.device
) -> None:
    outcomes = [measure(case, gpu) for case in cases(replace(FEW, models=in_dtype(FEW.models, dtype)))]
    assert outcomes
    for outcome in outcomes:
        assert outcome.failure is None and outcome.taken, outcome
        assert outcome.graph == "replayed" and outcome.timing == "", outcome
        assert outcome.ratio is not None and outcome.ratio > 0
        assert outcome.share is not None and outcome.share <= 1


def tokens_of(fused: Callable[..., Sequence[Tensor]], **changed: object) -> Case:
    """A case of the greedy argmax with another kernel in its place."""
    case = next(iter(argmax.cases(replace(FEW, tokens=(3,)))))
    return replace(case, fused=fused, **changed)  # type: ignore[arg-type]


def test_what_was_fixed_at_capture_is_wrong_at_replay(gpu: torch.device) -> None:
    """Right when it is called, and stale when it is replayed: only new inputs in the old memory show it."""

    def reading_a_copy(logits: Tensor) -> tuple[Tensor]:
        if not torch.cuda.is_current_stream_capturing():
            kept[:] = [logits.clone()]
        return (torch.argmax(kept[0], -1),)

    kept: list[Tensor] = []
    failure = measure(tokens_of(reading_a_copy), gpu).failure
    assert failure is not None
    assert failure.startswith("replayed on other inputs, a token is off by ")


def test_an_output_that_only_the_first_call_writes_is_wrong_at_replay(gpu: torch.device) -> None:
    def writing_when_eager(logits: Tensor) -> tuple[Tensor]:
        out = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        if torch.cuda.is_current_stream_capturing():
            out[:-1].copy_(torch.argmax(logits[:-1], -1))
        else:
            torch.argmax(logits, -1, out=out)
        return (out,)

    failure = measure(tokens_of(writing_when_eager), gpu).failure
    assert failure is not None
    assert failure.endswith("a token is off by 1 (mismatches), bound 0; 1 elements are NaN or were never written")


def test_the_command_on_this_gpu(tmp_path: Path) -> None:
    """Whoever made it, and without an sglang: the sizes of one small model, the picture, the JSON."""
    config = {"model_type": "gemma2", "hidden_size": 512, "num_attention_heads": 4, "vocab_size": 1003}
    (tmp_path / "config.json").write_text(json.dumps(config))
    picture, denied = tmp_path / "out.svg", tmp_path / "denylist.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launcher", "verify", "--unplanned", "--json", "--model-path", str(tmp_path)),
            *("--plot", str(picture), "gemma-rmsnorm", "greedy-sampler", "dsv4-fused-mhc"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "AMD_SGLANG_DENYLIST": str(denied)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {patch["id"]: patch["state"] for patch in document["patches"]} == {
        "gemma-rmsnorm": "passed",
        "greedy-sampler": "passed",
        "dsv4-fused-mhc": "no case",
    }
    assert picture.read_text().count("x") > len(document["patches"][0]["cases"])
    assert not denied.exists()


@pytest.mark.parametrize(
    ("fault", "state", "said"),
    [
        ("astray", "failed", ""),
        ("waiting", "failed", "captur"),
        ("uncapturable", "passed", ""),
    ],
)
def test_a_kernel_that_leaves_the_gpu_unusable_is_the_only_one_to_be_blamed(
    fault: str, state: str, said: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("verify_faults.py")), fault],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    alpha, beta = json.loads(done.stdout.splitlines()[-1])
    assert alpha["state"] == state, alpha
    assert said in str(alpha["failures"])
    assert beta["state"] == "passed", beta

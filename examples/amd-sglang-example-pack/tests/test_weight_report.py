"""The pack as it is installed, and its patch on the loader of the sglang at hand.

python -m overlay --simulate gfx942 --packs example -m pytest tests     # on a machine without an AMD GPU
python -m overlay --packs example -m pytest tests
"""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from amd_sglang_example_pack import weight_report
from amd_sglang_example_pack.weight_report import DETAIL, PATCH, weigh

from overlay import runtime
from overlay.errors import MalformedSwitchError
from overlay.model import State
from overlay.registry import load


def model() -> torch.nn.Module:
    """Half a million parameters in fp32, and a million in bf16 that two of its parts share."""
    first = torch.nn.Linear(500, 1000, bias=False)
    second = torch.nn.Linear(1000, 1010, bias=False, dtype=torch.bfloat16)
    tied = torch.nn.Linear(1000, 1010, bias=False, dtype=torch.bfloat16)
    tied.weight = second.weight
    return torch.nn.Sequential(first, second, tied)


def test_the_pack_is_offered_under_its_name() -> None:
    registry = load({"AMD_SGLANG_PACKS": "example"})
    loaded = registry.get(PATCH.id, "this test")
    assert loaded.pack is not None
    assert (loaded.pack.name, loaded.pack.distribution) == ("example", "amd-sglang-example-pack")
    assert PATCH.id not in load({}).ids


def test_every_data_type_is_weighed_once() -> None:
    assert weigh(model()) == "bfloat16 2.02 MB in 1, float32 2.00 MB in 1"
    assert weigh(torch.nn.Linear(1000, 10)) == "float32 0.04 MB in 2"
    assert weigh(torch.nn.ReLU()) == "none"


def test_the_switch_takes_two_words() -> None:
    with pytest.raises(MalformedSwitchError, match="AMD_SGLANG_EXAMPLE_WEIGHTS='all' is not valid"):
        DETAIL.read({DETAIL.name: "all"})


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Any:
    """sglang's own loader under the overlay, with a model that needs no checkpoint."""
    from sglang.srt.model_loader import loader as module

    overlay = runtime.current()
    if overlay is None:
        pytest.skip("run this under the overlay: python -m overlay --simulate gfx942 --packs example -m pytest tests")
    assert overlay.state(PATCH.id)[0] is State.APPLIED, overlay.state(PATCH.id)
    monkeypatch.setattr(module, "_initialize_model", lambda *_, **__: model())
    monkeypatch.setattr(module, "_get_quantization_config", lambda *_, **__: None)
    one = module.DefaultModelLoader.__new__(module.DefaultModelLoader)
    one.load_config = None
    monkeypatch.setattr(one, "_get_all_weights", lambda *_: [], raising=False)
    monkeypatch.setattr(one, "load_weights_and_postprocess", lambda *_: None, raising=False)
    return one


def test_the_real_loader_says_what_it_has_loaded(loader: Any, caplog: pytest.LogCaptureFixture) -> None:
    detail = DETAIL.read(os.environ)
    with caplog.at_level(logging.INFO, weight_report._LOADER.module):
        loaded = loader.load_model(
            model_config=SimpleNamespace(dtype=torch.float32, quantization=None),
            device_config=SimpleNamespace(device="cpu"),
        )
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("weights of")]
    assert said[0] == f"weights of Sequential: {weigh(loaded)}"
    assert len(said) == (1 if detail == "total" else 1 + len(list(loaded.children())))
    assert not loaded.training

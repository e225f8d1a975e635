"""What goes into a lock file."""

from __future__ import annotations

from demo.lock import lock_text


def test_one_pin_per_project_and_the_last_one_wins() -> None:
    text = lock_text("sim.in", ["triton==3.9.0", "Partial_Json.Parser==1", "partial-json-parser==2", "triton==3.6.0"])
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        "partial-json-parser==2",
        "triton==3.6.0",
    ]


def test_torch_and_its_cuda_packages_stay_out_but_the_management_library_stays() -> None:
    text = lock_text(
        "sim.in",
        ["torch==2.13.0+cpu", "nvidia-cudnn-cu13==9", "cuda-bindings==13", "nvidia-ml-py==13.1", "torchvision==0.28.0"],
    )
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        "nvidia-ml-py==13.1",
        "torchvision==0.28.0",
    ]
    assert "make lock" in text

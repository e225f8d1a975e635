"""What `fix-verify-page-table` does to the real attention backend of one release, and what it does without it.

Not collected by name: `test_deepseek_v4_fixes.py` runs this file under the overlay, in the simulated gfx950. What the
backend builds beside the page table (compressed pages, plans for kernels) is left out.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.patches.in_release.rounds import WITH_AND_WITHOUT, in_force

ID = "fix-verify-page-table"
PAGE, PAGES, DRAFT = 256, 6, 4


@pytest.fixture(scope="module", params=WITH_AND_WITHOUT)
def patched(request: pytest.FixtureRequest) -> bool:
    import sglang.srt.layers.attention.deepseek_v4_backend_hip_radix  # noqa: F401

    return in_force(request, ID)


@pytest.fixture
def radix(patched: bool, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from sglang.srt.layers.attention import deepseek_v4_backend_hip_radix as module

    monkeypatch.setattr(module, "create_paged_compressor_data", lambda **_: None)
    for name in ("init_compression_metadata", "init_flashmla_related"):
        monkeypatch.setattr(module.DSV4AttnMetadata, name, lambda self, **_: None)
    for name in (
        "init_forward_metadata_indexer",
        "_attach_unified_kv_prefill_meta",
        "_attach_unified_kv_decode_streams",
    ):
        if hasattr(module.DeepseekV4HipRadixBackend, name):
            monkeypatch.setattr(module.DeepseekV4HipRadixBackend, name, lambda self, *_, **__: None)
    found: ModuleType = module
    return found


def backend(radix: ModuleType, **differently: int) -> Any:
    """A backend of requests whose pages are numbered 100 * (request + 1) + position // 256."""
    pages = torch.tensor([[100 * (request + 1) + page for page in range(PAGES)] for request in range(3)])
    made = radix.DeepseekV4HipRadixBackend.__new__(radix.DeepseekV4HipRadixBackend)
    slots = (pages.unsqueeze(-1) * PAGE + torch.arange(PAGE)).flatten(1).to(torch.int32)
    vars(made).update(
        req_to_token=slots,
        MAX_SEQ_LEN_FOR_CAPTURE=slots.shape[1],
        page_size=PAGE,
        swa_page_size=128,
        c4_topk=512,
        device="cpu",
        cuda_int32_kwargs={"device": "cpu", "dtype": torch.int32},
        token_to_kv_pool=SimpleNamespace(translate_loc_from_full_to_swa=lambda slots: slots),
        speculative_num_draft_tokens=DRAFT,
        target_verify_num_draft_tokens=DRAFT,
        _move_to_device=torch.tensor,
    )
    vars(made).update(differently)
    return made


def page_table(verifier: Any, seq_lens: list[int], max_seq_len: int | None = None) -> Tensor:
    """The table of an eager verify: one row of page numbers for each draft token of each request."""
    metadata = verifier.init_forward_metadata_target_verify(
        max_seq_len=max(seq_lens) if max_seq_len is None else max_seq_len,
        req_pool_indices=torch.arange(len(seq_lens)),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
    )
    found: Tensor = metadata.core_attn_metadata.page_table
    return found


@pytest.mark.parametrize(
    ("seq_lens", "pages_cut"),
    [([256, 17], 1), ([253], 1), ([252], 0), ([100, 600], 0), ([300, 1022, 5], 1)],
    ids=["full page", "last slots", "just fits", "within a page", "three requests"],
)
def test_the_table_has_the_page_that_the_draft_tokens_begin(
    radix: ModuleType, patched: bool, seq_lens: list[int], pages_cut: int
) -> None:
    needed = -(-(max(seq_lens) + DRAFT) // PAGE)
    table = page_table(backend(radix), seq_lens)
    assert table.shape == (len(seq_lens) * DRAFT, needed - (0 if patched else pages_cut))
    for row, pages in enumerate(table.tolist()):
        assert pages == [100 * (row // DRAFT + 1) + page for page in range(table.shape[1])]


def test_the_table_of_a_captured_graph_stays_as_it_is(radix: ModuleType) -> None:
    """A capture asks for the longest request there can be: the table is as wide as the slots are, patched or not."""
    verifier = backend(radix)
    assert page_table(verifier, [5, 300], verifier.MAX_SEQ_LEN_FOR_CAPTURE).shape == (2 * DRAFT, PAGES)


def test_a_dspark_draft_worker_verifies_one_token_less(radix: ModuleType, patched: bool) -> None:
    """The server's number counts a token more than it verifies: it must not widen the table."""
    if "target_verify_num_draft_tokens" not in radix.DeepseekV4HipRadixBackend.__init__.__code__.co_names:
        pytest.skip("this release has no DSpark draft worker on ROCm")
    verifier = backend(radix, target_verify_num_draft_tokens=DRAFT - 1)
    assert page_table(verifier, [PAGE - DRAFT + 1]).shape[1] == 1
    assert page_table(verifier, [PAGE - DRAFT + 2]).shape[1] == (2 if patched else 1)

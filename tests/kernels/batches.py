"""Every kernel on one batch, in the ways in which a server's batches differ: where they start in wider buffers, how
long their longest request is, how many tokens a request has.

Needs Triton's compiler, and on the CPU something that keeps it from launching.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from patches.kernels import mhc, qk_norm_mrope
from patches.kernels.argmax import greedy_argmax
from patches.kernels.gemma_rmsnorm import gemma_rmsnorm
from patches.kernels.qk_norm_mrope import Geometry
from patches.kernels.sparse_mla import BYTES_PER_KEY, HEAD_DIM, Scope, sparse_decode
from tests.kernels.mhc_reference import CONSTANTS
from tests.kernels.mhc_reference import make_inputs as make_mhc_inputs
from tests.kernels.mrope_reference import make_inputs as make_mrope_inputs

BF16 = torch.bfloat16

#: Around every power of two, divisible by 16 and not.
SIZES = (*range(1, 34), 48, 63, 64, 65, 100, 127, 128, 129, 200, 256, 400, 511, 512)
_LARGEST = SIZES[-1]


def norms(batch: int, device: str, anyhow: bool) -> None:
    """Of a layer, with and without a residual, and of its heads. No other test has this hidden size."""
    buffer = torch.randn(2 * batch + 1, 2560, device=device, dtype=BF16)
    weight = torch.randn(2560, device=device, dtype=BF16)
    for first in (0, 1) if anyhow else (0,):
        x, residual = buffer[first : first + batch], buffer[first + batch : first + 2 * batch]
        gemma_rmsnorm(x, weight, 1e-6)
        gemma_rmsnorm(x, weight, 1e-6, residual)
        gemma_rmsnorm(x, weight, 1e-6, residual, overwrite=True)
    if anyhow:  # torch may report any stride for a dimension of one row
        gemma_rmsnorm(torch.randn(2560, 1, device=device, dtype=BF16).t(), weight, 1e-6)
    gemma_rmsnorm(torch.randn(batch, 40, 64, device=device, dtype=BF16), weight[:64], 1e-6)


def prologue(batch: int, device: str, anyhow: bool) -> None:
    geometry = Geometry(20, 4, 128, (24, 20, 20), True, True, 1e-6)
    given = make_mrope_inputs(geometry, batch, BF16, device, slots=_LARGEST + 8)
    positions = torch.zeros(3, _LARGEST + 8, dtype=torch.int64, device=device)
    slots = torch.arange(_LARGEST + 8, device=device)
    for first in (0, 1, 3) if anyhow else (0,):
        own = slice(first, first + batch)
        qk_norm_mrope.qk_norm_mrope(geometry, *given._replace(positions=positions[:, own], slots=slots[own]))
    if anyhow:
        alone = slots[1 : 1 + batch].clone()
        qk_norm_mrope.qk_norm_mrope(geometry, *given._replace(positions=positions[:, 1 : 1 + batch], slots=alone))


def hyper_connections(batch: int, device: str, anyhow: bool) -> None:
    given = make_mhc_inputs(min(batch, mhc.MAX_TOKENS), 1280, BF16, device)
    mhc.mhc_post_pre(*given, CONSTANTS)
    if anyhow:
        mhc.mhc_post_pre(*given._replace(x=given.residual[:, 1]), CONSTANTS)
        one = make_mhc_inputs(1, 1280, BF16, device)
        mhc.mhc_post_pre(*one._replace(x=torch.randn(1280, 1, device=device, dtype=BF16).t()), CONSTANTS)


def sparse_attention(batch: int, device: str, anyhow: bool) -> None:
    pages = torch.zeros(4, 64 * BYTES_PER_KEY + 64, dtype=torch.uint8, device=device)
    pages = pages[:, : 64 * BYTES_PER_KEY].view(4, 64, 1, BYTES_PER_KEY)
    q = torch.randn(batch, 24, HEAD_DIM, device=device, dtype=BF16)
    lengths = torch.full((batch + 3,), 64, dtype=torch.int32, device=device)
    indices = torch.zeros(batch * 128 + 3, dtype=torch.int32, device=device)
    ways = ((64, 64, 0, 1), (100, 64, 0, 1), (64, 100, 0, 1), (64, 64, 1, 1), (64, 64, 0, 2))
    for main_keys, extra_keys, first, per_request in ways if anyhow else ways[:1]:

        def scope(keys: int, first: int = first) -> Scope:
            return Scope(pages, indices[first : first + batch * keys].view(batch, keys), lengths[first:])

        sparse_decode(q, (scope(main_keys), scope(extra_keys)), 0.04, None, per_request)


def sampling(batch: int, device: str, anyhow: bool) -> None:
    """Into new tensors and, as a patched sglang asks for it, into one that is given."""
    logits = torch.empty(batch, 5008, device=device)
    greedy_argmax(logits)
    if anyhow:
        greedy_argmax(logits, torch.empty(batch + 1, dtype=torch.int64, device=device)[1:])


KERNELS: dict[str, Callable[[int, str, bool], None]] = {
    "norms": norms,
    "prologue": prologue,
    "hyper_connections": hyper_connections,
    "sparse_attention": sparse_attention,
    "sampling": sampling,
}
"""Called with the batch size, the device, and whether in every way or only as a first request comes."""


def sampled_batches(compute_units: int) -> list[int]:
    """Up to more rows than a GPU has places for: the ways of cutting rows change with rows per compute unit."""
    return [*SIZES, *range(1, 5 * compute_units, 7)]

"""aiter's GEMMs that sglang imports. All but `tgemm` (aiter_values) are for quantised weights or one architecture."""

from __future__ import annotations

from overlay.simulate.fakes.catalogues import aiter
from overlay.simulate.settings import AITER_HEAD

_TOP = ("aiter",)
_TRITON = "aiter.ops.triton"

aiter.signature(
    "aiter.ops.gemm_op_a8w8.gemm_a8w8_blockscale",
    "XQ, WQ, x_scale, w_scale, dtype=..., isBpreshuffled=False",
    shown_in=_TOP,
)
aiter.signature(
    "aiter.ops.gemm_op_a8w8.gemm_a8w8_bpreshuffle",
    "XQ, WQ, x_scale, w_scale, bias=None, dtype=..., check=False",
    shown_in=_TOP,
)
_BLOCKSCALE = "aiter.ops.gemm_op_a8w8.gemm_a8w8_blockscale_bpreshuffle"
aiter.signature(_BLOCKSCALE, "XQ, WQ, x_scale, w_scale, dtype=...", shown_in=_TOP, last="v0.1.15")
aiter.signature(_BLOCKSCALE, "XQ, WQ, x_scale, w_scale, dtype=..., out=None", shown_in=_TOP, first=AITER_HEAD)

_A4W4 = "A, B, A_scale, B_scale, bias=None, dtype=..., alpha=1.0, beta=0.0, bpreshuffle=True"
aiter.signature("aiter.ops.gemm_op_a4w4.gemm_a4w4", _A4W4, shown_in=_TOP, last="v0.1.15")
aiter.signature(
    "aiter.ops.gemm_op_a4w4.gemm_a4w4",
    f"{_A4W4}, apreshuffle=False, global_A_scale=None, global_B_scale=None",
    shown_in=_TOP,
    first=AITER_HEAD,
)


def _triton_gemm(
    kind: str, module: str, function: str, parameters: str, *, first: str | None = None, last: str | None = None
) -> None:
    """A GEMM written in Triton. Its module moved into `gemm/<kind>/`; the place it had before is kept as an alias."""
    aiter.signature(
        f"{_TRITON}.gemm.{kind}.{module}.{function}",
        parameters,
        shown_in=(f"{_TRITON}.{module}",),
        first=first,
        last=last,
    )


for _name, _parameters in (
    ("gemm_a16w16", "x, w, bias=None, dtype=..., y=None, config=None, activation=None, skip_reduce=False"),
    ("gemm_a8w8_blockscale", "x, w, x_scale, w_scale, dtype=..., y=None, config=None, skip_reduce=False"),
):
    _triton_gemm("basic", _name, _name, _parameters, last="v0.1.15")
    _triton_gemm("basic", _name, _name, f"{_parameters}, kernel_type='bandwidth_bound', backend=None", first=AITER_HEAD)
_triton_gemm(
    "basic",
    "gemm_afp4wfp4",
    "gemm_afp4wfp4",
    "x, w, x_scales, w_scales, dtype=..., y=None, config=None, skip_reduce=False",
)
_triton_gemm(
    "basic",
    "gemm_afp4wfp4_pre_quant_atomic",
    "gemm_afp4wfp4_pre_quant",
    "x, w, w_scales, dtype=..., y=None, config=None",
)
_BATCHED = "batched_gemm_a8w8_a_per_token_group_prequant_w_per_batched_tensor_quant"
_triton_gemm(
    "batched",
    _BATCHED,
    _BATCHED,
    "X, WQ, w_scale, group_size=128, bias=None, dtype=..., splitK=None, YQ=None, transpose_bm=False, "
    "transpose_bm_in=False, config=None",
)
aiter.signature(
    f"{_TRITON}.gemm.fused.fused_gemm_afp4wfp4_split_cat.fused_gemm_afp4wfp4_split_cat",
    "x, w, y, x_scale, w_scale, S1, S2, dtype=..., config=None",
)
aiter.signature(
    f"{_TRITON}.conv.conv2d.conv2d",
    "x, w_oihw, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), activation='none', layout='nchw'",
    first=AITER_HEAD,
)

"""The fused attention prologue against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from patches.kernels import qk_norm_mrope as kernel
from patches.kernels.qk_norm_mrope import Geometry, qk_norm_mrope, supports_geometry
from tests.kernels.mrope_reference import MAX_POSITION, Inputs, assert_rotated, expected, make_inputs, supports

SECTIONS = {64: (12, 10, 10), 128: (24, 20, 20), 256: (44, 42, 42)}


def geometry_of(
    head_size: int = 128, heads: tuple[int, int] = (4, 2), interleaved: bool = True, neox: bool = True
) -> Geometry:
    return Geometry(*heads, head_size, SECTIONS[head_size], interleaved, neox, eps=1e-6)


def call_and_check(geometry: Geometry, inputs: Inputs) -> None:
    """Compares one call with the oracle, and every cache element and input with what it was before."""
    assert supports_geometry(geometry)
    assert supports(geometry, inputs)
    before = Inputs(*(t.clone() for t in inputs))

    q = qk_norm_mrope(geometry, *inputs)

    want_q, want_k, want_v = expected(geometry, before)
    assert q.is_contiguous()
    assert q.dtype == inputs.qkv.dtype
    assert q.shape == (inputs.qkv.shape[0], geometry.num_q_heads * geometry.head_size)
    assert_rotated(q, want_q)
    held = inputs.slots >= 0
    written = inputs.slots[held]
    if len(written):
        kept = type(want_k)(*(field[held] for field in want_k))
        assert_rotated(inputs.k_cache[written], kept)
        assert torch.equal(bits(inputs.v_cache[written]), bits(want_v[held])), "V was not copied bit by bit"
    for name in ("k_cache", "v_cache"):
        now, then = getattr(inputs, name), getattr(before, name)
        untouched = torch.ones(now.shape[0], dtype=torch.bool, device=now.device).index_fill_(0, written, False)
        assert torch.equal(bits(now[untouched]), bits(then[untouched])), f"another slot of {name} was written"
    for name in set(Inputs._fields) - {"k_cache", "v_cache"}:
        assert torch.equal(getattr(inputs, name), getattr(before, name)), f"{name} was written to"


def bits(t: Tensor) -> Tensor:
    return t.contiguous().view(torch.int16)


@pytest.mark.usefixtures("poisoned")
class TestAgainstTheDefinition:
    @pytest.mark.parametrize("neox", [True, False], ids=["neox", "gptj"])
    @pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "runs"])
    @pytest.mark.parametrize("heads", [(1, 1), (4, 4), (5, 1), (7, 3), (32, 8)], ids=str)
    @pytest.mark.parametrize("head_size", kernel.HEAD_SIZES)
    def test_every_layout(
        self, head_size: int, heads: tuple[int, int], interleaved: bool, neox: bool, dtype: torch.dtype, device: str
    ) -> None:
        geometry = geometry_of(head_size, heads, interleaved, neox)
        call_and_check(geometry, make_inputs(geometry, 3, dtype, device))

    @pytest.mark.parametrize(
        ("sections", "interleaved"),
        [
            ((64, 0, 0), True),
            ((22, 21, 21), True),
            ((60, 1, 3), True),
            ((64, 0, 0), False),
            ((0, 0, 64), False),
            ((16, 24, 24), False),
            ((60, 1, 3), False),
        ],
        ids=str,
    )
    def test_every_section(
        self, sections: tuple[int, int, int], interleaved: bool, dtype: torch.dtype, device: str
    ) -> None:
        geometry = Geometry(2, 1, 128, sections, interleaved, True, 1e-6)
        call_and_check(geometry, make_inputs(geometry, 3, dtype, device))

    @pytest.mark.parametrize("tokens", [1, 2, 17])
    def test_every_token_count(self, tokens: int, dtype: torch.dtype, device: str) -> None:
        geometry = geometry_of()
        call_and_check(geometry, make_inputs(geometry, tokens, dtype, device))

    @pytest.mark.parametrize("case", ["slice of a graph buffer", "one row for all axes", "one token", "transposed"])
    def test_strided_positions(self, case: str, dtype: torch.dtype, device: str) -> None:
        geometry = geometry_of()
        inputs = make_inputs(geometry, 5, dtype, device)
        wide = torch.randint(0, MAX_POSITION, (3, 64), device=device)
        positions = {
            "slice of a graph buffer": wide[:, 3:8],
            "one row for all axes": wide[0, :5].expand(3, 5),
            "one token": wide[:, :1].expand(3, 5),
            "transposed": wide.flatten()[:15].view(5, 3).t(),
        }[case]
        assert not positions.is_contiguous()
        call_and_check(geometry, inputs._replace(positions=positions))

    def test_negative_slots_are_skipped(self, dtype: torch.dtype, device: str) -> None:
        """The caches start inside a larger allocation: what -1 would address is seen too."""
        geometry = geometry_of()
        inputs = make_inputs(geometry, 6, dtype, device)
        around_k, around_v = inputs.k_cache.clone(), inputs.v_cache.clone()
        inputs = inputs._replace(k_cache=around_k[2:], v_cache=around_v[2:], slots=inputs.slots.clamp(max=61))
        inputs.slots[:] = torch.tensor([5, -1, 0, 9, -1, 61])
        call_and_check(geometry, inputs)
        assert bool(around_k[:2].isnan().all() & around_v[:2].isnan().all())

    def test_all_slots_negative(self, dtype: torch.dtype, device: str) -> None:
        geometry = geometry_of()
        inputs = make_inputs(geometry, 2, dtype, device)
        call_and_check(geometry, inputs._replace(slots=torch.full_like(inputs.slots, -1)))

    def test_caches_of_different_strides(self, dtype: torch.dtype, device: str) -> None:
        """Slot and head strides of K and V, each its own, also where 16 does not divide them."""
        geometry = geometry_of()
        inputs = make_inputs(geometry, 4, dtype, device)

        def strided(slots: int, heads: int, width: int) -> Tensor:
            return torch.full((slots, heads, width), float("nan"), dtype=dtype, device=device)[:64, :2, :128]

        call_and_check(geometry, inputs._replace(k_cache=strided(64, 3, 131), v_cache=strided(64, 2, 160)))

    def test_v_keeps_every_bit(self, dtype: torch.dtype, device: str) -> None:
        """Every pattern of 16 bits once: NaNs with their payload, infinities, subnormals, -0."""
        geometry = geometry_of(256, (1, 32))
        inputs = make_inputs(geometry, 8, dtype, device)
        patterns = torch.arange(-32768, 32768, dtype=torch.int32, device=device).to(torch.int16).view(dtype)
        inputs.qkv[:, -32 * 256 :] = patterns.view(8, -1)
        qk_norm_mrope(geometry, *inputs)
        assert torch.equal(bits(inputs.v_cache[inputs.slots]).flatten(), bits(patterns))

    def test_eps_counts(self, dtype: torch.dtype, device: str) -> None:
        for eps in (1e-6, 1e-2):
            geometry = geometry_of()._replace(eps=eps)
            inputs = make_inputs(geometry, 3, dtype, device)
            call_and_check(geometry, inputs._replace(qkv=inputs.qkv * 2.0**-5))

    def test_slot_offsets_pass_32_bits(self, device: str) -> None:
        """Slot 2 lies 2**31 elements after slot 0. A 32-bit offset wraps to 2**31 before it, inside the storage."""
        geometry = geometry_of(64, (1, 1))
        size = 2**32 + 64
        if device == "cpu":  # pages that nothing touches are never backed
            storage = torch.from_numpy(np.zeros(size, dtype=np.float16))
        else:
            storage = torch.zeros(size, dtype=torch.float16, device=device)
        cache = storage.as_strided((3, 1, 64), (2**30, 64, 1), 2**31)
        inputs = make_inputs(geometry, 1, torch.float16, device)
        slots = torch.tensor([2], device=device)
        call_and_check(geometry, inputs._replace(k_cache=cache, slots=slots))
        call_and_check(geometry, inputs._replace(v_cache=cache, slots=slots))


class TestSupports:
    @pytest.fixture
    def geometry(self) -> Geometry:
        return geometry_of()

    @pytest.fixture
    def inputs(self, geometry: Geometry, device: str) -> Inputs:
        return make_inputs(geometry, 4, torch.float16, device)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("head_size", kernel.HEAD_SIZES)
    def test_accepts(self, head_size: int, dtype: torch.dtype, device: str) -> None:
        geometry = geometry_of(head_size)
        assert supports_geometry(geometry)
        assert supports(geometry, make_inputs(geometry, 4, dtype, device))

    @pytest.mark.parametrize(
        "change",
        [
            {"head_size": 96, "mrope_section": (16, 16, 16)},
            {"head_size": 512, "mrope_section": (88, 84, 84)},
            {"mrope_section": (24, 20, 21)},
            {"mrope_section": (48, -4, 20)},
            {"num_q_heads": 0},
            {"num_kv_heads": 0},
        ],
        ids=str,
    )
    def test_rejects_a_geometry(self, geometry: Geometry, change: dict[str, object]) -> None:
        assert not supports_geometry(geometry._replace(**change))  # type: ignore[arg-type]

    @pytest.mark.parametrize("change", ["no tokens", "1-d", "width", "strided", "float32", "meta"])
    def test_rejects_qkv(self, geometry: Geometry, inputs: Inputs, change: str) -> None:
        qkv = inputs.qkv
        if change == "no tokens":
            empty = {"qkv": qkv[:0], "positions": inputs.positions[:, :0], "slots": inputs.slots[:0]}
            assert not supports(geometry, inputs._replace(**empty))
            return
        if change == "float32":
            floats = {name: getattr(inputs, name).float() for name in Inputs._fields[:4] + Inputs._fields[5:7]}
            assert not supports(geometry, inputs._replace(**floats))
            return
        if change == "meta":
            assert not supports(geometry, Inputs(*(t.to("meta") for t in inputs)))
            return
        bad = {"1-d": qkv.flatten(), "width": qkv[:, :-64].contiguous(), "strided": qkv.repeat(1, 2)[:, : qkv.shape[1]]}
        assert not supports(geometry, inputs._replace(qkv=bad[change]))

    @pytest.mark.parametrize("name", ["q_weight", "k_weight"])
    @pytest.mark.parametrize("change", ["float32", "length", "strided", "meta"])
    def test_rejects_a_weight(self, geometry: Geometry, inputs: Inputs, name: str, change: str) -> None:
        weight = getattr(inputs, name)
        bad = {"float32": weight.float(), "length": weight[:64], "strided": weight.repeat(2)[::2]}
        assert not supports(geometry, inputs._replace(**{name: bad.get(change, weight.to("meta"))}))

    @pytest.mark.parametrize("change", ["float32", "width", "3-d", "strided", "meta"])
    def test_rejects_cos_sin(self, geometry: Geometry, inputs: Inputs, change: str) -> None:
        table = inputs.cos_sin
        bad = {
            "float32": table.float(),
            "width": table[:, :64].contiguous(),
            "3-d": table[None],
            "strided": table.repeat(1, 2)[:, :128],
        }
        assert not supports(geometry, inputs._replace(cos_sin=bad.get(change, table.to("meta"))))

    @pytest.mark.parametrize("change", ["int32", "one axis", "1-d", "tokens", "meta"])
    def test_rejects_positions(self, geometry: Geometry, inputs: Inputs, change: str) -> None:
        at = inputs.positions
        bad = {"int32": at.int(), "one axis": at[:1], "1-d": at[0], "tokens": at[:, :3]}
        assert not supports(geometry, inputs._replace(positions=bad.get(change, at.to("meta"))))

    @pytest.mark.parametrize("name", ["k_cache", "v_cache"])
    @pytest.mark.parametrize("change", ["float8", "5-d", "2-d", "heads", "width", "strided", "meta"])
    def test_rejects_a_cache(self, geometry: Geometry, inputs: Inputs, name: str, change: str) -> None:
        cache = getattr(inputs, name)
        bad = {
            "float8": cache.to(torch.float8_e4m3fn),
            "5-d": cache.view(4, 16, 2, 1, 128),
            "2-d": cache.flatten(1),
            "heads": cache[:, :1],
            "width": cache[..., :64],
            "strided": cache.transpose(1, 2).contiguous().transpose(1, 2),
        }
        assert not supports(geometry, inputs._replace(**{name: bad.get(change, cache.to("meta"))}))

    @pytest.mark.parametrize("change", ["int32", "tokens", "2-d", "strided", "meta"])
    def test_rejects_slots(self, geometry: Geometry, inputs: Inputs, change: str) -> None:
        slots = inputs.slots
        bad = {"int32": slots.int(), "tokens": slots[:3], "2-d": slots[None], "strided": slots.repeat(2)[::2]}
        assert not supports(geometry, inputs._replace(slots=bad.get(change, slots.to("meta"))))

    def test_needs_the_interpreter_for_a_cpu_tensor(self, geometry: Geometry, monkeypatch: pytest.MonkeyPatch) -> None:
        inputs = make_inputs(geometry, 4, torch.float16, "cpu")
        for interpreted in (True, False):
            monkeypatch.setattr(kernel, "_INTERPRETED", interpreted)
            assert supports(geometry, inputs) is interpreted


class TestLaunchConfig:
    @pytest.mark.parametrize("warp_size", [32, 64])
    @pytest.mark.parametrize("heads", [(1, 1), (2, 1), (5, 1), (16, 8), (32, 8), (64, 64)], ids=str)
    @pytest.mark.parametrize("head_size", kernel.HEAD_SIZES)
    def test_every_geometry_gets_a_valid_shape(self, head_size: int, heads: tuple[int, int], warp_size: int) -> None:
        config = kernel.launch_config(geometry_of(head_size, heads), warp_size)
        assert math.log2(config.heads).is_integer()
        assert config.heads < 2 * max(heads), "a group larger than the heads there are"
        assert config.num_warps in (1, 2, 4)  # Triton takes powers of two
        assert config.num_warps * warp_size <= max(warp_size, config.heads * head_size // 4), "threads are left idle"

    def test_threads_do_not_depend_on_the_warp_size(self) -> None:
        for head_size in kernel.HEAD_SIZES:
            geometry = geometry_of(head_size, (32, 8))
            narrow, wide = kernel.launch_config(geometry, 32), kernel.launch_config(geometry, 64)
            assert narrow == (wide.heads, 2 * wide.num_warps)

    def test_known_shapes(self) -> None:
        assert kernel.launch_config(geometry_of(128, (32, 8)), 32) == (4, 4)
        assert kernel.launch_config(geometry_of(64, (32, 8)), 64) == (8, 2)
        assert kernel.launch_config(geometry_of(256, (8, 1)), 32) == (4, 4)
        assert kernel.launch_config(geometry_of(128, (2, 1)), 32) == (2, 2)

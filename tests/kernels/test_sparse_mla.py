"""The sparse attention of a decode against its definition."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from patches.kernels import sparse_mla
from patches.kernels.sparse_mla import HEAD_DIM, Scope, is_fnuz, sparse_decode, supports
from tests.kernels.conftest import ON_GPU
from tests.kernels.sparse_mla_reference import attend, make_keys, pack

#: Tokens a page of the sliding window, and of the second scope where 4 or 128 tokens are compressed into one.
WINDOW, BY_4, BY_128 = 128, 64, 2
SCALE = HEAD_DIM**-0.5


@pytest.fixture(params=["float32", "float16", *(["bfloat16"] if ON_GPU else [])])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = getattr(torch, request.param)
    return found


class Case:
    """A batch of queries with its pages."""

    def __init__(self, tokens: int, heads: int, dtype: torch.dtype, device: str, pages: tuple[int, ...]) -> None:
        self.draw = torch.Generator().manual_seed(tokens * heads)
        self.q = torch.randn(tokens, heads, HEAD_DIM, generator=self.draw).to(dtype)
        self.device, self.pages = device, pages
        self.keys = [make_keys(3 * page if page > 2 else 40, self.draw) for page in pages]

    def scope(self, which: int, count: int, lengths: list[int] | None = None, missing: float = 0.0) -> Scope:
        """`count` keys for each token, a share of them missing."""
        shape = self.q.shape[0], count
        indices = torch.randint(0, len(self.keys[which]), shape, generator=self.draw, dtype=torch.int32)
        indices[torch.rand(shape, generator=self.draw) < missing] = -1
        given = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
        return Scope(pack(self.keys[which], self.pages[which]), indices, given)

    def check(self, *scopes: Scope, sink: Tensor | None = None, per_request: int = 1) -> tuple[Tensor, Tensor]:
        there = tuple(_moved(scope, self.device) for scope in scopes)
        q = self.q.to(self.device)
        assert supports(q, there)
        out, lse = sparse_decode(q, there, SCALE, None if sink is None else sink.to(self.device), per_request)
        assert out.shape == q.shape and out.dtype == q.dtype and lse.dtype == torch.float32
        expected = attend(self.q, self.keys, scopes, SCALE, sink, per_request)
        unit = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}[q.dtype]
        error = unit + expected.score_error[..., None]
        bound = error * (expected.out.abs() + expected.magnitude) + 1e-6
        assert ((out.cpu().double() - expected.out).abs() <= bound).all()
        lonely = expected.lse == float("inf")
        assert torch.equal(lse.cpu() == float("inf"), lonely)
        off = (lse.cpu().double() - expected.lse)[~lonely].abs()
        assert (off <= (expected.score_error + 1e-6 * expected.lse.abs())[~lonely] + 1e-6).all()
        return out.cpu(), lse.cpu()


def _moved(scope: Scope, device: str) -> Scope:
    """A scope on a device; `Tensor.to` alone would drop the padding at the end of a page."""
    pages = scope.pages
    rows = torch.empty(len(pages) * pages.stride(0), dtype=pages.dtype, device=device)
    moved = rows.as_strided(pages.shape, pages.stride()).copy_(pages)
    return Scope(moved, scope.indices.to(device), None if scope.lengths is None else scope.lengths.to(device))


def test_the_sliding_window_alone(dtype: torch.dtype, device: str) -> None:
    case = Case(3, 8, dtype, device, (WINDOW,))
    case.check(case.scope(0, 128))


@pytest.mark.parametrize("page", [BY_4, BY_128])
def test_two_scopes_share_one_softmax(dtype: torch.dtype, device: str, page: int) -> None:
    case = Case(2, 20, dtype, device, (WINDOW, page))
    sink = torch.randn(20, generator=case.draw)
    case.check(case.scope(0, 64), case.scope(1, 96, missing=0.3), sink=sink)


def test_lengths_end_a_row(dtype: torch.dtype, device: str) -> None:
    case = Case(4, 4, dtype, device, (WINDOW, BY_4))
    case.check(case.scope(0, 64, [64, 1, 17, 900]), case.scope(1, 64, [0, 64, 33, 5], missing=0.5))


def test_pages_of_mi300_are_e4m3fnuz(dtype: torch.dtype, device: str) -> None:
    """The other FP8: of the same bits it has half the value, and a NaN where e4m3fn has -0."""
    fnuz = torch.float8_e4m3fnuz
    case = Case(2, 4, dtype, device, (WINDOW, BY_4))
    case.keys = [make_keys(3 * page, case.draw, fnuz) for page in case.pages]
    scopes = tuple(
        case.scope(which, 64)._replace(pages=pack(case.keys[which], page, fnuz).view(fnuz))
        for which, page in enumerate(case.pages)
    )
    assert (scopes[0].pages.view(torch.uint8)[..., :448] & 0x7F == 0x7F).any(), "240 is a NaN's bits in e4m3fn"
    case.check(*scopes)
    mixed = (scopes[0], scopes[1]._replace(pages=scopes[1].pages.view(torch.float8_e4m3fn)))
    assert not supports(case.q, mixed)


@pytest.mark.parametrize(
    ("arch", "fnuz"), [("gfx942:sramecc+:xnack-", True), ("gfx950", False), ("gfx1201", False), (None, False)]
)
def test_bytes_are_in_the_format_of_their_gpu(arch: str | None, fnuz: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As sglang's `is_fp8_fnuz`: pages of bytes do not say which FP8 they hold."""
    sparse_mla._writes_fnuz.cache_clear()
    monkeypatch.setattr(torch.version, "hip", None if arch is None else "7.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(gcnArchName=arch))
    assert sparse_mla._writes_fnuz(0) is fnuz
    sparse_mla._writes_fnuz.cache_clear()
    assert not is_fnuz(torch.zeros(1, dtype=torch.uint8))
    assert is_fnuz(torch.zeros(1, dtype=torch.float8_e4m3fnuz))


def test_a_length_belongs_to_the_tokens_of_a_request(dtype: torch.dtype, device: str) -> None:
    case = Case(4, 4, dtype, device, (WINDOW,))
    case.check(case.scope(0, 64, [3, 40]), per_request=2)


def test_what_lies_beyond_a_length_is_never_read(dtype: torch.dtype, device: str) -> None:
    case = Case(2, 4, dtype, device, (WINDOW,))
    scope = case.scope(0, 64, [5, 30])
    kept = case.check(scope)
    scope.indices[0, 5:] = scope.indices[1, 30:] = 0
    assert all(torch.equal(now, then) for now, then in zip(case.check(scope), kept, strict=True))


@pytest.mark.parametrize("with_sink", [False, True])
def test_a_query_without_keys_gets_nothing(dtype: torch.dtype, device: str, with_sink: bool) -> None:
    case = Case(3, 4, dtype, device, (WINDOW, BY_4))
    main, extra = case.scope(0, 32, [0, 32, 32]), case.scope(1, 32, [0, 0, 32])
    main.indices[1] = -1
    sink = torch.randn(4, generator=case.draw) if with_sink else None
    out, lse = case.check(main, extra, sink=sink)
    assert not out[:2].any() and (lse[:2] == float("inf")).all() and out[2].any()


def test_keys_may_all_lie_in_the_second_scope(dtype: torch.dtype, device: str) -> None:
    case = Case(1, 4, dtype, device, (WINDOW, BY_4))
    case.check(case.scope(0, 48, missing=2.0), case.scope(1, 48), sink=torch.zeros(4))


def test_a_large_score_stays_finite(dtype: torch.dtype, device: str) -> None:
    case = Case(1, 4, dtype, device, (WINDOW,))
    case.q = case.q * 30
    out, lse = case.check(case.scope(0, 32), sink=torch.full((4,), -100.0))
    assert out.isfinite().all() and lse.abs().max() > 50


def test_strided_queries_and_indices(dtype: torch.dtype, device: str) -> None:
    case = Case(3, 4, dtype, device, (WINDOW,))
    scope = case.scope(0, 64)
    case.q = torch.cat([case.q, case.q.neg()], 1)[:, :4]
    case.check(scope._replace(indices=torch.cat([scope.indices, scope.indices], 1)[:, :64]))


def test_no_token_is_no_launch(dtype: torch.dtype, device: str) -> None:
    case = Case(1, 4, dtype, device, (WINDOW,))
    scope = case.scope(0, 32)
    out, lse = sparse_decode(case.q[:0].to(device), (scope._replace(indices=scope.indices[:0]),), SCALE)
    assert out.shape == (0, 4, HEAD_DIM) and lse.shape == (0, 4)


def test_what_it_does_not_take() -> None:
    case = Case(2, 4, torch.float16, "cpu", (WINDOW,))
    scope = case.scope(0, 32)
    assert supports(case.q, (scope,)) and supports(case.q, (scope, scope))
    assert not supports(case.q, ()) and not supports(case.q, (scope,) * 3)
    assert not supports(case.q[..., :256], (scope,))
    assert not supports(case.q.double(), (scope,))
    assert not supports(case.q[:1], (scope,))
    assert not supports(case.q, (scope._replace(indices=scope.indices.long()),))
    assert not supports(case.q, (scope._replace(lengths=torch.ones(2)),))
    assert not supports(case.q, (scope._replace(pages=scope.pages.bfloat16()),))
    assert not supports(case.q, (scope._replace(pages=scope.pages[..., :576]),))
    assert not supports(case.q, (scope._replace(pages=scope.pages.transpose(1, 2)),))

from __future__ import annotations

import pytest

from overlay.simulate.fakes.scalar_type import ScalarType, scalar_types


# What the real class of sgl-kernel 0.3.21 answers.
@pytest.mark.parametrize(
    ("name", "packed"),
    [("uint4b8", 1125899907892224), ("uint8b128", 1125899923621888), ("float4_e2m1f", 562949953487106)],
)
def test_ids(name: str, packed: int) -> None:
    assert getattr(scalar_types, name).id == packed


def test_ranges() -> None:
    assert (scalar_types.uint4b8.min(), scalar_types.uint4b8.max()) == (-8, 7)
    assert (scalar_types.int8.min(), scalar_types.int8.max()) == (-128, 127)
    assert scalar_types.float8_e4m3fn.size_bits == 8
    assert scalar_types.uint4 == ScalarType(0, 4, False) and hash(scalar_types.uint4) == hash(ScalarType(0, 4, False))

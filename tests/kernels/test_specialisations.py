"""After a warm-up no batch makes Triton compile a kernel again, by the rules of AMD's backend.

Needs no GPU; `test_no_recompiling_gpu.py` is the same on one, with real compilations.
"""

from __future__ import annotations

import pytest

from tests.kernels.amd_builds import output_of
from tests.kernels.batches import KERNELS


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = output_of("specialisations.py", "gfx942", tmp_path_factory.mktemp("triton"))
    return found


@pytest.mark.parametrize("name", KERNELS)
def test_no_batch_needs_a_build_that_the_first_did_not(builds: dict[str, dict[str, object]], name: str) -> None:
    assert builds[name]["warm"]
    assert not builds[name]["later"]

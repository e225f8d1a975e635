"""The two catalogues. Their contents are in the modules beside this one, which fill them when they are imported."""

from __future__ import annotations

from overlay.simulate.fakes.catalogue import Catalogue
from overlay.simulate.settings import AITER_VERSIONS, KERNEL_VERSIONS

#: AMD's aiter (github.com/ROCm/aiter), read at the tags that `AITER_VERSIONS` names.
aiter = Catalogue("aiter", AITER_VERSIONS)
#: sglang's kernel package, `sgl-kernel` and since 0.5.10 `sglang-kernel`, as its Python looks under ROCm.
sgl_kernel = Catalogue("sgl_kernel", KERNEL_VERSIONS)

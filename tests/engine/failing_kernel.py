"""`generate.py` with a norm kernel that fails, in every process, from its fourth launch on."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import wrapt

from tests.engine.generate import main

SERVED = 3


def fail(kernel: ModuleType) -> None:
    launch, launches = kernel._launch, iter(range(SERVED))

    def failing(*arguments: Any) -> None:
        if next(launches, None) is None:
            raise RuntimeError("no such instruction")
        launch(*arguments)

    vars(kernel)["_launch"] = failing


if __name__ in ("__main__", "__mp_main__"):  # the latter in a spawned scheduler
    wrapt.register_post_import_hook(fail, "patches.kernels.gemma_rmsnorm")
if __name__ == "__main__":
    main()

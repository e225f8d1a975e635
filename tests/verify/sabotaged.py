"""`python -m overlay.verify` with a worker in which three of the kernels are broken, each in its own way."""

from __future__ import annotations

import os
import sys
from typing import Any


def sabotage() -> None:
    """A norm that leaves its last row as it found it, an argmax with a token that does not exist, a kernel that was not
    built for this GPU."""
    import torch

    from patches.kernels import argmax, gemma_rmsnorm, qk_norm_mrope

    norm: Any = gemma_rmsnorm.gemma_rmsnorm
    greedy_argmax: Any = argmax.greedy_argmax

    def without_the_last_row(*arguments: Any, **named: Any) -> Any:
        print("[aiter] a library that logs to standard output", flush=True)
        made = norm(*arguments, **named)
        short = []
        for whole in made if isinstance(made, tuple) else (made,):
            short.append(torch.empty(whole.shape, dtype=whole.dtype))
            short[-1][:-1] = whole[:-1]
        return tuple(short) if isinstance(made, tuple) else short[0]

    def with_a_wrong_token(logits: torch.Tensor, *rest: Any, **named: Any) -> Any:
        tokens = greedy_argmax(logits, *rest, **named)
        tokens[-1] = logits.shape[1]
        return tokens

    def not_built(*_: Any) -> Any:
        raise RuntimeError("no kernel image is available")

    vars(gemma_rmsnorm)["gemma_rmsnorm"] = without_the_last_row
    vars(argmax)["greedy_argmax"] = with_a_wrong_token
    vars(qk_norm_mrope)["qk_norm_mrope"] = not_built


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        from overlay.verify import worker

        sabotage()
        worker.main(sys.argv[2])
    else:
        from overlay.registry import load
        from overlay.verify.__main__ import main
        from overlay.verify.supervise import Supervisor

        sys.exit(main(sys.argv[1], Supervisor(load(os.environ), (sys.executable, __file__, "--worker"))))

"""What is to be verified, as the launcher tells it to the program that measures."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from overlay.errors import OverlayError
from overlay.model import Patch, State
from overlay.plan import Plan
from overlay.registry import Registry


@dataclass(frozen=True)
class Request:
    """`ids` are patches that have kernels. Without a `model_path` the default sizes are taken."""

    ids: tuple[str, ...] = ()
    model_path: str | None = None
    tensor_parallel: int = 1
    plot: str | None = None
    as_json: bool = False

    def arguments(self) -> list[str]:
        """For `python`."""
        return ["-m", "overlay.verify", json.dumps(asdict(self))]

    @classmethod
    def of(cls, argument: str) -> Request:
        """The request that `arguments` were made of."""
        found = json.loads(argument)
        return cls(**{**found, "ids": tuple(found["ids"])})

    def planned(self, plan: Plan) -> Request:
        """This request for the patches that a launch would apply: all that have kernels, or those that it names.

        Raises OverlayError for a name that would not be applied, and where nothing would be.
        """
        _on_rocm(plan)
        decisions = {decision.patch.id: decision for decision in plan.decisions}
        for one in self.ids:
            decision = decisions[one]
            _has_kernels(decision.patch)
            if decision.state is not State.PLANNED:
                raise OverlayError(
                    f"{one} is {decision.state.value} for this sglang, so that its kernel would not run: "
                    f"{decision.reason}. Leave it away, or add --unplanned to verify the kernel all the same."
                )
        chosen = self.ids or tuple(
            one for one, d in decisions.items() if d.state is State.PLANNED and d.patch.kernels is not None
        )
        if not chosen:
            raise OverlayError(
                f"no patch that is planned for sglang {plan.version.text or '(no version)'} launches a kernel of its "
                "own: there is nothing to verify. `amd-sglang patches plan` says why; --unplanned verifies every "
                "kernel that this version has."
            )
        return replace(self, ids=chosen)

    def unplanned(self, registry: Registry) -> Request:
        """This request for the kernels of the patches that it names, or of all, whatever sglang is there, if any."""
        for one in self.ids:
            _has_kernels(registry.get(one, "the command line"))
        return replace(self, ids=self.ids or tuple(patch.id for patch in registry if patch.kernels is not None))


def check_plot(plot: str | None) -> None:
    """Raise OverlayError for a picture that could not be written, before anything is measured."""
    if plot is None:
        return
    from importlib.util import find_spec

    path = Path(plot)
    if not path.absolute().parent.is_dir():
        raise OverlayError(f"--plot {plot}: there is no folder {path.absolute().parent}. Make it, or name another.")
    if path.suffix.lower() != ".svg" and find_spec("matplotlib") is None:
        raise OverlayError(
            f"--plot {plot}: {path.suffix or 'this'} needs matplotlib, which is not installed here. Run `pip install "
            "matplotlib`, or name a file that ends in .svg, which needs nothing."
        )


def _has_kernels(patch: Patch) -> None:
    if patch.kernels is None:
        raise OverlayError(f"{patch.id} launches no kernel of its own: there is nothing to verify. Leave it away.")


def _on_rocm(plan: Plan) -> None:
    kind = plan.platform.kind
    if kind == "rocm":
        return
    other = ", `--unplanned` runs them on the GPU at hand" if kind == "cuda" else ""
    raise OverlayError(
        f"this is not ROCm, and no patch would be applied: {plan.platform.torch}. Run `amd-sglang verify` where the "
        "server will run, with a ROCm build of torch; `--simulate gfx942` runs the kernels in Triton's interpreter on "
        f"tiny shapes{other}."
    )

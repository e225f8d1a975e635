"""What `amd-sglang verify` agrees to verify, and what it says instead. Nothing is measured here."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
from click.testing import CliRunner, Result

from overlay import commands
from overlay.errors import OverlayError, RegistryError
from overlay.model import Patch
from overlay.plan import Plan, make_plan
from overlay.platform import Platform
from overlay.registry import builtin
from overlay.source import DirectoryTree
from overlay.verify import start
from overlay.verify.request import Request, check_plot
from tests.unit.engine_support import BETA_PATCH, PATCH, ROCM, registry, synthetic

WITH_KERNEL = replace(PATCH, kernels="patches.proofs.alpha:cases")
OFF = replace(BETA_PATCH, kernels="patches.proofs.beta:cases", default_on=False)


def plan(root: Path, *patches: Patch, platform: Platform = ROCM) -> Plan:
    return make_plan(registry(*patches), DirectoryTree(synthetic(root)), platform, {})


def test_what_is_planned_and_has_a_kernel_is_verified(tmp_path: Path) -> None:
    for other in (OFF, BETA_PATCH):
        made = plan(tmp_path, WITH_KERNEL, other)
        assert Request(plot="a.svg").planned(made) == Request(("alpha",), plot="a.svg")
        assert Request(("alpha",)).planned(made) == Request(("alpha",))
    both = plan(tmp_path, WITH_KERNEL, replace(OFF, default_on=True))
    assert Request().planned(both).ids == ("alpha", "beta")


def test_a_patch_that_no_launch_would_apply_is_said_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(OverlayError, match=r"beta is disabled for this sglang.*off by default.*add --unplanned"):
        Request(("beta",)).planned(plan(tmp_path, WITH_KERNEL, OFF))


def test_a_patch_without_a_kernel_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OverlayError, match="beta launches no kernel of its own"):
        Request(("beta",)).planned(plan(tmp_path, WITH_KERNEL, BETA_PATCH))
    with pytest.raises(OverlayError, match="beta launches no kernel of its own"):
        Request(("beta",)).unplanned(registry(WITH_KERNEL, BETA_PATCH))


def test_nothing_to_verify_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OverlayError, match=r"no patch that is planned for sglang 0\.5\.9 launches a kernel"):
        Request().planned(plan(tmp_path, PATCH, OFF))


@pytest.mark.parametrize(
    ("kind", "said", "unsaid"),
    [
        ("cuda", "built for cuda.*--simulate gfx942.*--unplanned", None),
        ("cpu", "built for cpu.*where the server will run.*--simulate gfx942", "--unplanned"),
        ("none", "no torch was found.*--simulate gfx942", "--unplanned"),
    ],
)
def test_a_machine_without_rocm_is_told_both_ways(tmp_path: Path, kind: str, said: str, unsaid: str | None) -> None:
    with pytest.raises(OverlayError, match=said) as caught:
        Request().planned(plan(tmp_path, WITH_KERNEL, platform=Platform(kind)))
    assert unsaid is None or unsaid not in str(caught.value)


def test_unplanned_takes_every_kernel_or_those_that_are_named() -> None:
    both = registry(WITH_KERNEL, OFF)
    assert Request().unplanned(both).ids == ("alpha", "beta")
    assert Request(("beta",)).unplanned(both).ids == ("beta",)


def test_a_request_survives_the_command_line() -> None:
    request = Request(("alpha", "beta"), "/models/a b", 8, "out.png", True)
    module, name, argument = request.arguments()
    assert (module, name) == ("-m", "overlay.verify")
    assert Request.of(argument) == request


def test_a_picture_that_could_not_be_written_is_an_error_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_plot(None)
    check_plot(str(tmp_path / "out.svg"))
    with pytest.raises(OverlayError, match="there is no folder"):
        check_plot(str(tmp_path / "absent" / "out.svg"))
    known: dict[str, object] = {}
    monkeypatch.setattr(importlib.util, "find_spec", known.get)
    with pytest.raises(OverlayError, match=r"\.png needs matplotlib.*pip install matplotlib"):
        check_plot(str(tmp_path / "out.png"))
    known["matplotlib"] = object()
    check_plot(str(tmp_path / "out.png"))


def test_the_kernels_of_the_built_in_patches_are_where_they_say() -> None:
    """Without importing them: they load torch."""
    named = {patch.id: patch.kernels for patch in builtin() if patch.kernels is not None}
    assert {"gemma-rmsnorm", "greedy-sampler", "fix-aiter-greedy-sample", "qwen3-fused-attention"} <= named.keys()
    assert {"dsv4-fused-mhc", "dsv4-nosplitk-decode"} <= named.keys()
    for kernels in named.values():
        module, _, function = kernels.partition(":")
        found = importlib.util.find_spec(module)
        assert found is not None and found.origin is not None
        assert f"\ndef {function}(shapes: Shapes)" in Path(found.origin).read_text()


@pytest.mark.parametrize("kernels", ["patches.proofs.alpha", "patches/proofs:cases", ":cases", "a:b:c"])
def test_a_name_that_cannot_be_a_function_is_refused(kernels: str) -> None:
    with pytest.raises(RegistryError, match="alpha names its kernels"):
        registry(replace(PATCH, kernels=kernels))


def invoke(*arguments: str, **environ: str | None) -> Result:
    return CliRunner().invoke(commands.main, ["verify", *arguments], env={"AMD_SGLANG_SIMULATE": None, **environ})


def test_the_command_checks_names_before_it_starts_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_start(command: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
        raise AssertionError(command)

    monkeypatch.setattr(start, "become", must_not_start)
    for arguments in (("gemma-norm",), ("--unplanned", "gemma-norm")):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "unknown patch id 'gemma-norm' in the command line" in result.output
    assert invoke("--simulate", "gfx900").exit_code == 2


def test_a_denied_patch_is_verified_like_the_rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The plan that is made for it must not have dropped it, nor may the program that measures be told of it."""
    seen: list[tuple[bool, dict[str, str]]] = []

    def prepare(
        arguments: Sequence[str], options: object, environ: Mapping[str, str], *, heed_denylist: bool
    ) -> SimpleNamespace:
        seen.append((heed_denylist, dict(environ)))
        return SimpleNamespace(plan=plan(tmp_path, replace(WITH_KERNEL, id="gemma-rmsnorm")), environ=environ)

    started: list[Sequence[str]] = []
    monkeypatch.setattr(start, "prepare", prepare)
    monkeypatch.setattr(start, "become", lambda command, environ: started.append(command))
    assert invoke("gemma-rmsnorm", "--tp", "4").exit_code == 0
    assert seen[0][0] is False
    assert Request.of(started[0][-1]) == Request(("gemma-rmsnorm",), tensor_parallel=4)

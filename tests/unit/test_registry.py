"""A set of patches that contradicts itself is refused when it is put together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlay.errors import RegistryError, UnknownPatchError
from overlay.model import Method, Patch, Target
from overlay.registry import Registry, builtin
from tests.unit.engine_support import ALPHA_IMAGE, BETA_IMAGE, BETA_PATCH, PATCH, returning, variant

_BETA = Target(BETA_IMAGE.slot, Method.REPLACE, returning(1))


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ((PATCH, replace(BETA_PATCH, id="alpha")), "two patches have the id alpha"),
        ((replace(PATCH, requires=("beta",)), BETA_PATCH), "alpha requires beta, which must stand before it"),
        ((replace(PATCH, requires=("alpha",)),), "alpha requires alpha, which must stand before it"),
        ((replace(PATCH, versions="0.5.9"),), "alpha has a malformed version range '0.5.9'"),
        ((replace(PATCH, versions=">=0.5.9"),), "alpha has no upper version bound"),
        ((PATCH, replace(PATCH, id="twin")), "twin and alpha both fill sglang.srt.alpha:Alpha.forward"),
        ((replace(PATCH, conflicts=("ghost",)),), "alpha conflicts with ghost, which nobody has"),
        (
            (replace(PATCH, variants=(variant(ALPHA_IMAGE, targets=(_BETA,)),)),),
            "alpha/only fills sglang.srt.beta:beta without an image of it",
        ),
    ],
)
def test_a_contradiction_names_its_patches(patches: tuple[Patch, ...], message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        Registry(patches)


def test_a_third_patch_of_a_slot_must_exclude_both_others() -> None:
    second = replace(PATCH, id="second", conflicts=("alpha",))
    third = replace(PATCH, id="third", conflicts=("alpha",))
    with pytest.raises(RegistryError, match="third and second both fill"):
        Registry((PATCH, second, third))


@pytest.mark.parametrize("declared_by_the_first", [True, False])
def test_two_patches_of_one_slot_are_taken_if_either_excludes_the_other(declared_by_the_first: bool) -> None:
    first = replace(PATCH, conflicts=("twin",) if declared_by_the_first else ())
    twin = replace(PATCH, id="twin", conflicts=() if declared_by_the_first else ("alpha",))
    assert Registry((first, twin)).ids == ("alpha", "twin")


def test_two_patches_of_one_slot_are_taken_if_the_second_requires_the_first() -> None:
    upon = replace(PATCH, id="upon", requires=("alpha",))
    assert Registry((PATCH, upon)).ids == ("alpha", "upon")
    with pytest.raises(RegistryError, match="other and upon both fill"):
        Registry((PATCH, upon, replace(PATCH, id="other", requires=("alpha",))))


def test_two_patches_of_one_slot_are_taken_if_no_source_is_known_to_both() -> None:
    other_source = replace(ALPHA_IMAGE, digests=frozenset({"0123456789abcdef"}))
    later = replace(PATCH, id="later", variants=(variant(other_source),))
    assert Registry((PATCH, later)).ids == ("alpha", "later")


def test_an_id_that_no_switch_could_name_is_refused() -> None:
    with pytest.raises(RegistryError, match="Alpha Patch"):
        Registry((replace(PATCH, id="Alpha Patch"),))


def test_order_is_kept_and_a_patch_is_found_by_id() -> None:
    registry = Registry((BETA_PATCH, PATCH))
    assert [patch.id for patch in registry] == list(registry.ids) == ["beta", "alpha"]
    assert registry.get("alpha", "--enable") is PATCH


def test_an_unknown_id_names_the_place_and_the_known_ids() -> None:
    with pytest.raises(UnknownPatchError, match=r"'gamma' in --enable: known ids are beta, alpha\."):
        Registry((BETA_PATCH, PATCH)).get("gamma", "--enable")


def test_the_patches_that_ship_do_not_contradict_each_other() -> None:
    assert "gemma-rmsnorm" in builtin().ids
    assert len({gate.name for gate in builtin().gates}) == len(builtin().gates)

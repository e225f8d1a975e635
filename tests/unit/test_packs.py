"""Third-party packs: found without being imported, loaded by name, and refused whole for whatever they do wrong."""

from __future__ import annotations

import re
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from overlay import packs, render
from overlay.errors import MalformedSwitchError, OverlayError, PackError, UnknownPackError
from overlay.gates import asked, check
from overlay.model import Pack, Patch, State
from overlay.plan import Plan, make_plan
from overlay.registry import builtin, load
from overlay.source import DirectoryTree
from tests.unit.engine_support import ROCM, synthetic
from tests.unit.pack_support import write_pack

NAMED = {"AMD_SGLANG_PACKS": "strange"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = dict(sys.modules)
    yield folder
    sys.modules.clear()
    sys.modules.update(before)


def stranger() -> Patch:
    return load(NAMED).get("stranger", "here")


def planned(root: Path, **environ: str) -> Plan:
    return make_plan(load(environ), DirectoryTree(root), ROCM, environ)


def test_a_pack_comes_after_the_patches_of_this_distribution(site: Path) -> None:
    write_pack(site, "PATCHES = [one(), one(id='second', conflicts=('stranger',))]")
    write_pack(site, "PATCHES = [one(id='first')]", name="other.Pack_2", distribution="other")
    assert load(NAMED).ids == (*builtin().ids, "stranger", "second")
    with pytest.raises(PackError, match=r"'strange' of .* stranger and first both fill sglang.srt.alpha:Alpha.forward"):
        load({"AMD_SGLANG_PACKS": "other.Pack_2,strange"})
    assert load({"AMD_SGLANG_PACKS": "other.Pack_2, other.Pack_2"}).ids == (*builtin().ids, "first")


def test_a_patch_is_marked_with_its_pack_whatever_the_pack_says(site: Path) -> None:
    write_pack(site, "from overlay.model import Pack\nPATCHES = (one(pack=Pack('amd', 'official', '9')),)")
    assert stranger().pack == Pack("strange", "strange-pack", "1.2")
    assert {patch.pack for patch in builtin()} == {None}


def test_a_patch_may_require_one_of_this_distribution(site: Path) -> None:
    write_pack(site, "PATCHES = (one(requires=('gemma-rmsnorm',)),)")
    assert load(NAMED).ids[-1] == "stranger"


def test_nothing_of_a_pack_is_imported_before_it_is_named(site: Path, tmp_path: Path) -> None:
    trace = tmp_path / "imported"
    write_pack(site, f"open({str(trace)!r}, 'a').write(__name__)\nPATCHES = (one(),)")
    write_pack(site, "PATCHES = (one(id='tame'),)", name="tame", distribution="tame")
    assert [offer.pack.name for offer in packs.installed() if offer.pack.name in ("strange", "tame")]
    assert load({}).ids == builtin().ids
    assert "tame" in load({"AMD_SGLANG_PACKS": "tame"}).ids
    with pytest.raises(UnknownPackError):
        load({"AMD_SGLANG_PACKS": "ghost"})
    assert not trace.exists()
    load(NAMED)
    assert trace.read_text() == "strange_pack"


def test_a_name_that_nobody_offers_is_answered_with_those_that_are(site: Path) -> None:
    write_pack(site)
    with pytest.raises(UnknownPackError, match=r"no pack 'stranger' is installed\. Installed: .*strange.*AMD_SGLANG_"):
        load({"AMD_SGLANG_PACKS": "stranger"})


@pytest.mark.parametrize("text", ["a,", "a b", "a;b", "-a", "../a", "a:b"])
def test_a_malformed_list_of_names_is_an_error(text: str) -> None:
    with pytest.raises(MalformedSwitchError, match=r"AMD_SGLANG_PACKS=.* expected names of packs"):
        load({"AMD_SGLANG_PACKS": text})
    with pytest.raises(MalformedSwitchError, match=r"--packs=.* expected names of packs"):
        asked({}, ("fine", text))


def test_options_add_to_the_environment_and_a_name_counts_once() -> None:
    assert asked({"AMD_SGLANG_PACKS": "b, a", "X": "1"}, ("a,c", "b"))["AMD_SGLANG_PACKS"] == "b,a,c"
    assert asked({"AMD_SGLANG_PACKS": "b, a"}, ()) == {"AMD_SGLANG_PACKS": "b, a"}


RAISES = "importing it raised"
HOSTILE = {
    "raises": ("1 / 0", f"{RAISES} ZeroDivisionError: division by zero at .*strange_pack.py:"),
    "exits": ("import sys; sys.exit(0)", f"{RAISES} SystemExit: 0 at .*strange_pack.py:"),
    "base exception": ("class Odd(BaseException): pass\nraise Odd('odd')", f"{RAISES} Odd: odd at .*strange_pack.py:"),
    "absent": ("", f"{RAISES} AttributeError: module 'strange_pack' has no attribute 'PATCHES'"),
    "no iterable": ("PATCHES = one()", "it is of type Patch, where a tuple of Patch is wanted"),
    "a module": ("import os as PATCHES", "it is of type module, where a tuple of Patch is wanted"),
    "a string": ("PATCHES = 'stranger'", "its patch 0 is of type str, where Patch is wanted"),
    "a set": ("PATCHES = frozenset({'a'})", "it is of type frozenset, where a tuple of Patch is wanted"),
    "empty": ("PATCHES = ()", "it has no patches"),
    "not a patch": ("PATCHES = (one(), 1)", "its patch 1 is of type int, where Patch is wanted"),
    "generator": ("PATCHES = (one() for _ in 'a')", "it is of type generator, where a tuple of Patch is wanted"),
    "raising collection": (
        "class Each(tuple):\n    def __iter__(self):\n        yield one()\n        raise OSError('no disk')\n"
        "PATCHES = Each()",
        "going through its patches raised OSError: no disk at .*strange_pack.py:",
    ),
    "wrong field": ("PATCHES = (one(id=3),)", "its patch 0.id is of type int, where str is wanted"),
    "list for tuple": ("PATCHES = (one(variants=[]),)", "its patch 0.variants is of type list, where tuple is wanted"),
    "wrong item": ("PATCHES = (one(requires=(one(),)),)", r"its patch 0.requires\[0\] is of type Patch, where str"),
    "wrong depth": (
        "PATCHES = (one(variants=(replace(one().variants[0], need=None),)),)",
        r"its patch 0.variants\[0\].need is of type NoneType, where something to call is wanted",
    ),
    "wrong method": (
        "PATCHES = (one(variants=(replace(one().variants[0], targets=(Target(ALPHA, 'replace', make),)),)),)",
        r"its patch 0.variants\[0\].targets\[0\].method is of type str, where Method is wanted",
    ),
    "digests as text": (
        "PATCHES = (one(variants=(replace(one().variants[0], images=(Image(ALPHA, 'abc'),)),)),)",
        r"its patch 0.variants\[0\].images\[0\].digests is of type str, where frozenset is wanted",
    ),
    "ours": ("PATCHES = (one(id='gemma-rmsnorm'),)", "two patches have the id gemma-rmsnorm"),
    "twice": ("PATCHES = (one(), one())", "two patches have the id stranger"),
    "odd id": ("PATCHES = (one(id='A Patch'),)", "'A Patch' is no id that a switch could name"),
    "no upper bound": ("PATCHES = (one(versions='>=0.5.7'),)", "stranger has no upper version bound"),
    "no variant": ("PATCHES = (one(variants=()),)", "stranger has no variant"),
    "later": ("PATCHES = (one(requires=('ghost',)),)", "stranger requires ghost, which must stand before it"),
    "our switch": (
        "PATCHES = (one(gates=(Gate('AMD_SGLANG_STRICT', '', '', str),)),)",
        "stranger has a switch AMD_SGLANG_STRICT, which there is already",
    ),
    "our patch's switch": (
        "PATCHES = (one(gates=(Gate('AMD_SGLANG_GEMMA_RMSNORM_BACKEND', '', '', str),)),)",
        "stranger has a switch AMD_SGLANG_GEMMA_RMSNORM_BACKEND, which there is already",
    ),
    "handover": (
        "PATCHES = (one(gates=(Gate('AMD_SGLANG_PLAN', '', '', str),)),)",
        "stranger has a switch AMD_SGLANG_PLAN, which there is already",
    ),
    "foreign switch": ("PATCHES = (one(gates=(Gate('PATH', '', '', str),)),)", "stranger has a switch 'PATH': its"),
}


@pytest.mark.parametrize(("code", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_faulty_pack_is_refused_whole_and_named(site: Path, code: str, message: str) -> None:
    write_pack(site, code)
    with pytest.raises(PackError, match=message) as caught:
        load(NAMED)
    said = str(caught.value)
    assert said.startswith("the third-party pack 'strange' of strange-pack 1.2 (strange_pack:PATCHES) cannot be used: ")
    assert said.endswith("take it out of --packs and AMD_SGLANG_PACKS.")


@pytest.mark.parametrize(("value", "message"), [("nowhere:PATCHES", "No module named 'nowhere'"), ("1 2", RAISES)])
def test_an_entry_point_that_leads_nowhere_is_the_packs_error(site: Path, value: str, message: str) -> None:
    write_pack(site, value=value)
    with pytest.raises(PackError, match=message):
        load(NAMED)


def test_the_original_error_is_kept(site: Path) -> None:
    write_pack(site, "1 / 0")
    with pytest.raises(PackError) as caught:
        load(NAMED)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_the_users_interrupt_is_no_error_of_the_pack(site: Path) -> None:
    write_pack(site, "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load(NAMED)


@pytest.mark.parametrize("early", ["torch", "sglang"])
def test_a_pack_that_imports_them_when_it_is_loaded_is_refused(
    site: Path, early: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == early]:
        monkeypatch.delitem(sys.modules, name)  # another test may have imported it
    (site / early).mkdir()
    (site / early / "__init__.py").write_text("")
    write_pack(site, f"import {early}\nPATCHES = (one(),)")
    with pytest.raises(PackError, match=f"it imports {early} when it is loaded, not in the `make` of a target"):
        load(NAMED)


def test_one_name_from_two_distributions_is_nobodys(site: Path) -> None:
    write_pack(site)
    write_pack(site, distribution="twin")
    with pytest.raises(PackError) as caught:
        load(NAMED)
    for part in ("'strange' of strange-pack 1.2", "'strange' of twin 1.2", "has the same name"):
        assert part in str(caught.value)
    assert not {"strange_pack", "twin"} & sys.modules.keys()


def test_two_packs_may_not_have_one_id(site: Path) -> None:
    write_pack(site)
    write_pack(site, name="other", distribution="other")
    with pytest.raises(PackError, match=r"'other' of other 1\.2 .*two patches have the id stranger"):
        load({"AMD_SGLANG_PACKS": "strange,other"})


def test_a_distribution_without_metadata_is_still_named(site: Path) -> None:
    (write_pack(site) / "METADATA").unlink()
    assert stranger().pack == Pack("strange", "unknown", "unknown")


@pytest.mark.parametrize(
    ("need", "message"),
    [
        ("lambda facts: 1 / 0", "stranger/only: need raised ZeroDivisionError: division by zero at .*strange_pack.py"),
        ("lambda facts: True", "stranger/only: need is of type bool, where Need is wanted"),
        ("always(Need(1, 'x'))", r"stranger/only: need\.needed is of type int, where bool is wanted"),
    ],
)
def test_what_a_pack_says_of_its_need_is_its_own_affair(site: Path, tmp_path: Path, need: str, message: str) -> None:
    write_pack(site, f"PATCHES = (one(variants=(replace(one().variants[0], need={need}),)),)")
    with pytest.raises(PackError, match=message):
        planned(synthetic(tmp_path / "tree"), **NAMED)


def test_the_switches_of_a_pack_are_checked_like_ours(site: Path) -> None:
    gates = "(Gate('AMD_SGLANG_ODD', '', 1, int), Gate('AMD_SGLANG_WORSE', '', 1, lambda text: text[9]))"
    write_pack(site, f"PATCHES = (one(gates={gates}),)")
    with pytest.raises(OverlayError, match=r"sets AMD_SGLANG_ODD, which is not a switch .* where --packs names it"):
        check({"AMD_SGLANG_ODD": "1"}, load({}).gates)
    check({**NAMED, "AMD_SGLANG_ODD": "1"}, load(NAMED).gates)
    with pytest.raises(MalformedSwitchError, match="AMD_SGLANG_ODD='x' is not valid"):
        check({**NAMED, "AMD_SGLANG_ODD": "x"}, load(NAMED).gates)
    with pytest.raises(PackError, match="parsing AMD_SGLANG_WORSE raised IndexError"):
        check({**NAMED, "AMD_SGLANG_WORSE": "x"}, load(NAMED).gates)


def test_a_pack_whose_import_does_not_end_is_named(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    released = threading.Event()

    def say(message: str) -> None:
        said.append(message)
        released.set()

    monkeypatch.setattr(packs, "PATIENCE_S", 0.01)
    monkeypatch.setattr(packs, "say", say)
    monkeypatch.setattr(threading, "released", released, raising=False)
    write_pack(site, "import threading; assert threading.released.wait(60)\nPATCHES = (one(),)")
    assert load(NAMED).ids[-1] == "stranger"
    assert said == [
        "still importing the third-party pack 'strange' of strange-pack 1.2 (strange_pack:PATCHES); nothing goes on "
        "so far"
    ]


def test_the_plan_tells_whose_code_is_in_force(site: Path, tmp_path: Path) -> None:
    write_pack(site)
    plan = planned(synthetic(tmp_path / "tree"), **NAMED)
    assert plan.decisions[-1].state is State.PLANNED
    document = plan.to_json()
    assert document["packs"] == [
        {"name": "strange", "distribution": "strange-pack", "version": "1.2", "patches": ["stranger"]}
    ]
    shown = render.summary(plan, brief=True)
    assert "WARNING: third-party code: pack strange (strange-pack 1.2) patches sglang: stranger" in shown
    assert re.search(r"^stranger +planned +\[pack strange 1\.2\] asked for$", shown, re.MULTILINE)
    assert "[pack strange 1.2] a stranger's patch" in re.sub(r"\s+", " ", render.patch_table(load(NAMED), {}))
    assert "pack      strange (strange-pack 1.2): third-party code" in render.explanation(stranger(), "")


def test_the_digest_tells_packs_and_their_versions_apart(site: Path, tmp_path: Path) -> None:
    info = write_pack(site)
    tree = synthetic(tmp_path / "tree")
    without, first = planned(tree), planned(tree, **NAMED)
    shutil.rmtree(info)
    write_pack(site, version="1.3")
    later = planned(tree, **NAMED)
    assert len({without.digest, first.digest, later.digest}) == 3
    assert later.digest == planned(tree, **NAMED).digest
    same_patch_of_ours = replace(
        first, decisions=(*first.decisions[:-1], replace(first.decisions[-1], patch=replace(stranger(), pack=None)))
    )
    assert same_patch_of_ours.digest != first.digest

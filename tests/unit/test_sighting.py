"""Where a definition stands in a file, what is remembered of it, and the excerpt that compiles to the same code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix import known
from overlay import fingerprint, known_sources, preimage
from overlay.fingerprint import UNREADABLE
from overlay.model import Slot
from overlay.observer import Observer
from overlay.preimage import Proof
from overlay.registry import builtin
from overlay.sighting import Memory, Sighting, SourceFile
from overlay.source import DirectoryTree, read_module
from tests.unit.engine_support import RELEASES, executed, write_tree

#: Statements of a module among which a definition is easily cut out wrongly.
NASTY = (
    "import os.path, functools as ft\n",
    "from os import (\n    path as p,\n    sep,\n)\n",
    "try:\n    import json\nexcept ImportError:\n    json = None\n",
    'text = """\nclass A:\n    def f(self):\n        return "in a string"\n"""\n',
    "deep = [\n1, # class A:\n(2,\n3)]\n",
    "long = 1 + \\\n    2\n",
    "a = 1; b = 2; c = '''x\ny'''\n",
    "\x0c\n# a form feed\n",
    "if True:\n    def f(x):\n        return os.path.join(x, ft.reduce)\nelse:\n    import nothing\n",
    "class A:\n    def f(self):\n        '''Doc.'''\n        return json.dumps(self), __class__\n\n    x = 3\n",
    "class A:\n\n    @ft.wraps(\n        len\n    )\n    @staticmethod\n    async def f(x, *, y=(1,\n2)):\n"
    "        return [ft.x() for z in y]\n",
    "class A:\n\tdef f(self):\n\t\tdef g(x: int) -> None:\n\t\t\tglobal b\n\t\t\tb = x\n\t\treturn g\n",
    "class A:\n    class B:\n        if os:\n            def f(self): return self.__private\n",
    "class A: pass\n",
    "def f(): pass; x = 1\n",
    "@ft.cache\ndef f(x): return os.sep, f'{x!r:>{\"a\"}}'\n",
    'if True:\n  if os:\n     def f(x):\n            """\nclass A:\n"""\n            return x\n',
    "def f():\n    return (lambda: ft.partial(p))()\n",
    "for f in ():\n    pass\nelse:\n    class A:\n        def f(self): return super().f()\n",
    "match 1:\n    case 1:\n        import json\n\n        def f(): return json.dumps(1)\n",
    "try:\n    x = y\nexcept NameError:\n    import json\n\n    def f(): return json.dumps(1)\n",
)
NAMES = ("f", "A", "A.f", "A.B.f", "A.B", "x")


def code_of(source: bytes, qualname: str, flags: int = 0) -> CodeType | None:
    return preimage._find(compile(source, "nasty.py", "exec", flags, dont_inherit=True), qualname)


def check(source: bytes, names: tuple[str, ...] = NAMES) -> int:
    """Compare everything a file says of these names with what its tree says; how many excerpts were cut out."""
    tree = fingerprint.parse(source)
    assert tree is not None
    file, memory, cut = SourceFile(source, Memory()), Memory(), 0
    for name in names:
        assert file.sighting(name).observed == fingerprint.observe(tree, name)
        assert SourceFile(source, memory).sighting(name) == SourceFile(source, memory).sighting(name)
        *alone, whole = file.texts(name)
        assert whole == source
        for text in alone:
            cut += 1
            assert code_of(text, name, file.sighting(name).compiler_flags) == code_of(source, name)
    return cut


@given(st.lists(st.sampled_from(NASTY), min_size=1, max_size=6), st.booleans(), st.sampled_from(["\n", "\r\n", "\r"]))
@settings(max_examples=150, deadline=None)
def test_an_excerpt_compiles_to_the_code_of_the_file(parts: list[str], postponed: bool, newline: str) -> None:
    text = "from __future__ import annotations\n" * postponed + "".join(parts)
    check(text.replace("\n", newline).encode())


def _defined() -> Iterator[tuple[str, str]]:
    for text in NASTY:
        tree = fingerprint.parse(text.encode())
        assert tree is not None
        yield from ((text, name) for name in NAMES if fingerprint.definition(tree, name) is not None)


@pytest.mark.parametrize(("text", "name"), list(_defined()))
def test_every_one_of_them_is_cut_out(text: str, name: str) -> None:
    assert check(("import os, functools as ft\n\n\n\n" + text).encode(), (name,)) == 1


def test_an_excerpt_is_the_definition_alone() -> None:
    source = b"import os\nx = 1\n\nclass A:\n    y = 2\n\n    def f(self):\n        return os.getpid()\n\nz = 3\n"
    first, _ = SourceFile(source, Memory()).texts("A.f")
    assert first.strip() == b"import os\nclass A:\n    def f(self):\n        return os.getpid()"


def test_where_the_headers_have_no_room_there_is_no_excerpt() -> None:
    definition = b"class A:\n    def f(self):\n        return os.getpid()\n"
    assert check(definition, ("A.f",)) == 1
    assert check(definition + b"import os\n", ("A.f",)) == 0
    assert check(b"\n" + definition + b"import os\n", ("A.f",)) == 1


def test_encodings() -> None:
    text = "class A:\n    def f(self):\n        return 'é'\n"
    assert check(b"\xef\xbb\xbf" + text.encode(), ("A.f",)) == 1
    assert check(("# -*- coding: latin-1 -*-\n" + text).encode("latin-1"), ("A.f",)) == 0


def test_every_excerpt_of_the_releases_compiles_to_the_code_of_its_file() -> None:
    seen: set[str] = set()
    for root in RELEASES.values():
        tree = DirectoryTree(root)
        names: dict[str, list[str]] = {}
        for slot in known.slots(builtin()):
            names.setdefault(slot.module, []).append(slot.qualname)
        for module, qualnames in names.items():
            source = read_module(tree, module) or b""
            file = SourceFile(source, known_sources.memory())
            if file.content in seen or not source:
                continue
            seen.add(file.content)
            whole = compile(source, "nasty.py", "exec", dont_inherit=True)
            for name in (name for name in qualnames if file.sighting(name).last):
                text = next(file.texts(name))
                assert len(text.strip()) < len(source)
                assert code_of(text, name, file.sighting(name).compiler_flags) == preimage._find(whole, name)
    assert len(seen) > 50 or len(RELEASES) < 10


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """A process that knows nothing yet."""
    empty = Memory()
    monkeypatch.setattr(known_sources, "memory", lambda: empty)
    return empty


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every text that is parsed from now on."""
    texts: list[bytes] = []
    real = fingerprint.parse

    def parse(source: bytes) -> object:
        texts.append(source)
        return real(source)

    monkeypatch.setattr(fingerprint, "parse", parse)
    return texts


TEXT = "import os\n" + "x = 1\n" * 100 + "class A:\n    def f(self):\n        return os.getpid()\n\n    g = f\n"


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    write_tree(tmp_path, {"sighted.py": TEXT})
    return executed(tmp_path / "sighted.py", monkeypatch)


def test_what_the_plan_parsed_is_not_parsed_for_the_proof(
    live: ModuleType, memory: Memory, parsed: list[bytes]
) -> None:
    del memory
    slots = [Slot("sighted", "A.f"), Slot("sighted", "A.missing")]
    observer = Observer(DirectoryTree(Path(str(live.__file__)).parent))
    observed = [observer.observe(slot) for slot in slots]
    assert parsed[0] == TEXT.encode()
    planned = list(parsed)
    proof = Proof(live)
    for slot, seen, held in zip(slots, observed, (live.A.f, None), strict=True):
        assert proof.objection(slot, held, seen) is None
    assert parsed == planned


def test_a_file_with_one_byte_more_is_another_file(memory: Memory, parsed: list[bytes]) -> None:
    sightings = [SourceFile(source, memory).sighting("A.f") for source in (TEXT.encode(), b"\n" + TEXT.encode())]
    assert {TEXT.encode(), b"\n" + TEXT.encode()} <= set(parsed)
    assert sightings[0].observed == sightings[1].observed
    assert sightings[1].first == sightings[0].first + 1


@pytest.mark.parametrize(("up", "down"), [(1, 0), (0, 1), (-1, 0), (90, -3)])
def test_a_wrong_row_cannot_pass_for_the_source(live: ModuleType, memory: Memory, up: int, down: int) -> None:
    content = SourceFile(TEXT.encode(), memory).content
    right = SourceFile(TEXT.encode(), Memory()).sighting("A.f")
    known = {"A.f": Sighting(right.observed, right.first - up, right.last + down)}
    memory.of(content).update(known)
    excerpt, whole = SourceFile(TEXT.encode(), memory).texts("A.f")
    assert excerpt != whole == TEXT.encode()
    assert Proof(live).foreign(Slot("sighted", "A.f"), live.A.f) is None
    live.A.f = lambda self: os.getpid()
    assert "not the function" in str(Proof(live).foreign(Slot("sighted", "A.f"), live.A.f))


def test_lines_that_do_not_give_the_digest_alone_are_not_sighted() -> None:
    uncut = b"class A:\n    def f(self):\n        return os.getpid()\nimport os\n"
    assert SourceFile(uncut, Memory()).sighting("A.f") == Sighting(SourceFile(uncut, Memory()).sighting("A.f").observed)
    assert SourceFile(b"\n" + uncut, Memory()).sighting("A.f").last == 4


def test_what_could_not_be_read_is_not_remembered(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TEXT.encode()
    with monkeypatch.context() as patched:
        patched.setattr(fingerprint, "observe", lambda *_: UNREADABLE)
        assert SourceFile(source, memory).sighting("A.f").observed == UNREADABLE
    assert SourceFile(source, memory).sighting("A.f").observed != UNREADABLE
    assert not SourceFile(b"class A(:\n", memory).readable
    assert SourceFile(b"class A(:\n", memory).sighting("A.f").observed == UNREADABLE

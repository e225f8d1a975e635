"""What a fingerprint ignores, what it does not, and what it refuses to decide."""

from __future__ import annotations

import ast
import copy
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay.fingerprint import AMBIGUOUS, NO_OWNER, UNREADABLE, imported_from, observe, parse
from overlay.model import ABSENT
from tests.unit.engine_support import LAYERNORM, RELEASES, ROOT, digest_of

_PLAIN = """
class A:
    def f(self, x, *, eps=1e-6):
        if x is None and not self.flag:
            return {"a": [1, 2.0, b"c"]}
        return x * (1 + self.weight)
"""

_SAME = {
    "comments": _PLAIN.replace("        return x", "        # why\n        return x"),
    "formatting": _PLAIN.replace("x * (1 + self.weight)", "(\n            x*(1+ self . weight)\n        )"),
    "quotes": _PLAIN.replace('"a"', "'a'"),
    "a u prefix": _PLAIN.replace('"a"', 'u"a"'),
    "docstring": _PLAIN.replace("eps=1e-6):", 'eps=1e-6):\n        """Says what it does."""'),
    "line numbers": "\n" * 50 + _PLAIN,
    "number spelling": _PLAIN.replace("1e-6", "0.000_001"),
    "neighbours": "import os\n" + _PLAIN + "\n    def g(self):\n        return 2\n\ndef f():\n    return 3\n",
    "an import beside the class": "try:\n    from vllm import A\nexcept ImportError:\n    A = None\n".replace(
        "A = None", "pass"
    )
    + _PLAIN,
    "a class under if": "if True:\n" + textwrap.indent(_PLAIN, "    "),
}


@pytest.mark.parametrize("text", _SAME.values(), ids=_SAME)
def test_what_cannot_change_behaviour_does_not_change_the_digest(text: str) -> None:
    assert text != _PLAIN
    assert digest_of(text, "A.f") == digest_of(_PLAIN, "A.f")


_OTHER = {
    "default": ("1e-6", "1e-5"),
    "int instead of float": ("2.0", "2"),
    "str instead of bytes": ('b"c"', '"c"'),
    "bool instead of int": ("[1,", "[True,"),
    "keyword-only": (", *,", ","),
    "operator": ("and not", "or not"),
    "negation": ("and not self", "and self"),
    "identity": ("is None", "is not None"),
    "attribute": ("self.flag", "self.flags"),
    "parentheses": ("x * (1 + self.weight)", "x * 1 + self.weight"),
    "annotation": ("self, x,", "self, x: int,"),
    "decorator": ("    def f", "    @staticmethod\n    def f"),
    "async": ("    def f", "    async def f"),
    "statement": ("        if x", "        x = x\n        if x"),
    "a string that is not a docstring": ("        return x", '        "text"\n        return x'),
}


@pytest.mark.parametrize(("old", "new"), _OTHER.values(), ids=_OTHER)
def test_every_other_change_changes_the_digest(old: str, new: str) -> None:
    assert old in _PLAIN
    assert digest_of(_PLAIN.replace(old, new, 1), "A.f") != digest_of(_PLAIN, "A.f")


def _mutants(function: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Copies of a tree with one constant, name, attribute, argument, operator or comparison changed."""
    operators = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
    for at, node in enumerate(ast.walk(function)):
        twin = copy.deepcopy(function)
        mutated = list(ast.walk(twin))[at]
        if isinstance(mutated, ast.Constant):
            mutated.value = f"not {mutated.value!r}"
        elif isinstance(mutated, ast.Name):
            mutated.id += "_"
        elif isinstance(mutated, ast.Attribute):
            mutated.attr += "_"
        elif isinstance(mutated, ast.arg):
            mutated.arg += "_"
        elif isinstance(mutated, ast.BinOp):
            mutated.op = operators[type(mutated.op)]()
        elif isinstance(mutated, ast.Compare):
            mutated.ops[0] = ast.Gt() if not isinstance(mutated.ops[0], ast.Gt) else ast.Lt()
        elif isinstance(mutated, ast.If):
            mutated.orelse = [*mutated.orelse, ast.Pass()]
        else:
            continue
        yield f"{type(node).__name__} {getattr(node, 'lineno', '')}", twin


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("method", ["__init__", "forward_native"])
def test_every_single_mutation_of_a_real_method_is_seen(release: str, method: str) -> None:
    tree = parse((RELEASES[release] / LAYERNORM).read_bytes())
    assert tree is not None
    owner = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == "GemmaRMSNorm")
    at = next(i for i, n in enumerate(owner.body) if isinstance(n, ast.FunctionDef) and n.name == method)
    original, function = observe(tree, f"GemmaRMSNorm.{method}"), owner.body[at]
    seen = {original: "the original"}
    for what, mutant in _mutants(function):
        owner.body[at] = mutant  # type: ignore[call-overload]
        digest = observe(tree, f"GemmaRMSNorm.{method}")
        assert digest not in seen, f"{what} has the digest of {seen[digest]}"
        seen[digest] = what
    assert len(seen) > 10


@pytest.mark.parametrize(
    ("text", "qualname", "expected"),
    [
        ("", "A.f", NO_OWNER),
        ("A = 1", "A.f", AMBIGUOUS),
        ("def A(): pass", "A.f", NO_OWNER),
        ("class A: pass", "A.f", ABSENT),
        ("class A: pass", "f", ABSENT),
        ("class A:\n  class B: pass", "A.B.f", ABSENT),
        ("from vllm import A", "A.f", AMBIGUOUS),
        ("from vllm.ops import g as f", "f", "import vllm.ops.g"),
        ("from vllm import f, g", "f", "import vllm.f"),
        ("from . import f", "f", AMBIGUOUS),
        ("import f", "f", AMBIGUOUS),
        ("from b import f\nfrom a.c import g as f", "f", "import a.c.g|b.f"),
        ("if x:\n  from a import f\nelif y:\n  try:\n    from b import f\n  except E: pass", "f", "import a.f|b.f"),
        ("if x:\n  from a import f\nelse:\n  from a import f", "f", "import a.f"),
        ("from a import g as f, h as f", "f", "import a.h"),
        ("from a import f\nfrom . import f", "f", AMBIGUOUS),
        ("from a import f\nimport f", "f", AMBIGUOUS),
        ("try:\n  from a import f\nexcept E:\n  f = None", "f", AMBIGUOUS),
        ("from a import f\nfrom b import f\ndel f", "f", AMBIGUOUS),
        ("from a import A\nfrom b import A", "A.f", AMBIGUOUS),
        ("if x:\n  class A:\n    def f(self): 1\nelse:\n  class A:\n    def f(self): 2", "A.f", AMBIGUOUS),
        ("try:\n  def f(): 1\nexcept E:\n  def f(): 2", "f", AMBIGUOUS),
        ("def f(): 1\ndef f(): 2", "f", AMBIGUOUS),
        ("def f(): 1\nf = wrap(f)", "f", AMBIGUOUS),
        ("def f(): 1\nf: object = 2", "f", AMBIGUOUS),
        ("def f(): 1\na, (f, b) = c", "f", AMBIGUOUS),
        ("def f(): 1\ndel f", "f", AMBIGUOUS),
        ("def f(): 1\nwith x:\n  f += 1", "f", AMBIGUOUS),
        ("def f(): 1\nfor x in y:\n  f = x", "f", AMBIGUOUS),
        ("def f(): 1\nfrom m import g as f", "f", AMBIGUOUS),
        ("class A:\n  f = None\n  def f(self): 1", "A.f", AMBIGUOUS),
    ],
)
def test_what_text_does_not_settle_is_not_a_digest(text: str, qualname: str, expected: str) -> None:
    assert digest_of(text, qualname) == expected


def test_the_places_of_an_import_are_told_again() -> None:
    observed = digest_of("from b import f\nfrom a.c import g as f", "f")
    assert imported_from(observed) == (("a.c", "g"), ("b", "f"))
    assert [imported_from(other) for other in (ABSENT, AMBIGUOUS, "0123456789abcdef")] == [(), (), ()]


@pytest.mark.parametrize("release", RELEASES)
def test_the_norms_of_a_real_release_are_imported_from_aiter_or_vllm(release: str) -> None:
    text = (RELEASES[release] / LAYERNORM).read_text()
    assert {module.partition(".")[0] for module, _ in imported_from(digest_of(text, "rms_norm"))} == {"aiter", "vllm"}


@pytest.mark.parametrize(
    "text",
    [
        "def f(): 1\nfor f in range(3): pass",
        "def f(): 1\nwith x as f: pass",
        "def f(): 1\nwhile (f := g()): pass",
        "def f(): 1\ntry: pass\nexcept E as f: pass",
        "def f(): 1\nmatch x:\n  case 1:\n    f = 2",
        "def f(): 1\nmatch x:\n  case f: pass",
    ],
)
def test_every_statement_that_rebinds_a_name_makes_it_ambiguous(text: str) -> None:
    assert digest_of(text, "f") == AMBIGUOUS


@pytest.mark.parametrize("text", ["import f.g", "if x:\n  from m import f", "x.f = 1\ny[f] = 2\nprint(f)"])
def test_a_definition_beside_what_does_not_rebind_it_is_found(text: str) -> None:
    plain = "def f(): 1"
    bound_by_import = text.startswith("import")
    expected = AMBIGUOUS if bound_by_import else digest_of(plain, "f")
    assert digest_of(f"{plain}\n{text}", "f") == expected


@pytest.mark.parametrize(
    "source",
    [b"def f(:", b"def f():\x00 pass", b"# -*- coding: utf-8 -*-\n'\xff'", b"# coding: no-such\n", b"(" * 1000],
    ids=["truncated", "null byte", "not utf-8", "unknown encoding", "too deep"],
)
def test_text_that_is_not_python_has_no_tree(source: bytes) -> None:
    assert parse(source) is None


def test_a_deep_expression_has_a_digest_or_no_tree() -> None:
    tree = parse(b"def f(): return " + b"+".join([b"1"] * 2000))
    assert tree is None or observe(tree, "f") == UNREADABLE or len(observe(tree, "f")) == 16


def test_a_declared_encoding_is_honoured() -> None:
    latin = parse("# coding: latin-1\ndef f(): return 'é'".encode("latin-1"))
    utf8 = parse("def f(): return 'é'".encode())
    assert latin is not None
    assert utf8 is not None
    assert observe(latin, "f") == observe(utf8, "f")


_SCRIPT = """
import ast, sys
from overlay.fingerprint import digest, parse
tree = parse(open(sys.argv[1], 'rb').read())
for node in ast.walk(tree):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        print(node.name, node.lineno, digest(node))
"""


def _other_pythons() -> list[str]:
    mine = f"python3.{sys.version_info.minor}"
    names = [name for name in ("python3.10", "python3.11", "python3.12", "python3.13") if name != mine]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = []
    for name in names:
        installed = sorted(pyenv.glob(f"{name.removeprefix('python')}.*/bin/{name}"))
        command = str(installed[-1]) if installed else shutil.which(name)
        if command and subprocess.run([command, "-c", ""], capture_output=True, check=False).returncode == 0:
            found.append(command)
    return found


@pytest.mark.parametrize("release", RELEASES)
def test_every_python_computes_the_same_digests(release: str) -> None:
    others = _other_pythons()
    if not others:
        pytest.skip("no other Python of 3.10 to 3.13 on this machine")
    file = str(RELEASES[release] / LAYERNORM)
    answers = {
        command: subprocess.run(
            [command, "-c", _SCRIPT, file], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
        ).stdout
        for command in (sys.executable, *others)
    }
    assert "GemmaRMSNorm" in answers[sys.executable]
    assert set(answers.values()) == {answers[sys.executable]}

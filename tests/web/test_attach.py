"""The routes of a server's app: put in through the ledger, taken out again, and left alone where they do not fit."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from overlay.errors import InstallError
from overlay.install import Ledger
from overlay.web import attach
from overlay.web.metrics import mount
from overlay.web.snapshot import Snapshot


class Alike:
    """Equal to everything of its kind, as Starlette's routes of one path are."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alike)

    __hash__ = None  # type: ignore[assignment]


def test_what_was_added_to_a_list_is_taken_out_and_nothing_else() -> None:
    theirs, ours, later = Alike(), Alike(), Alike()
    items: list[Any] = [theirs]
    ledger = Ledger()
    ledger.extend("k", items, [ours])
    assert "k" in ledger and items[1] is ours
    items.append(later)
    ledger.uninstall("k")
    assert [id(one) for one in items] == [id(theirs), id(later)] and "k" not in ledger


def test_a_list_is_extended_once_under_a_key_and_nothing_else_is() -> None:
    ledger, items = Ledger(), [1]
    ledger.extend("k", items, [2])
    with pytest.raises(InstallError, match="k is already installed"):
        ledger.extend("k", items, [3])
    with pytest.raises(InstallError, match="k is already installed"):
        ledger.install("k", [])
    with pytest.raises(InstallError, match="extends tuple, which is not a list"):
        ledger.extend("other", (1,), [2])  # type: ignore[arg-type]
    assert items == [1, 2] and "other" not in ledger


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        ({}, ["/overlay in this server", "metrics of the patches"]),
        ({"app": None, "add_prometheus_middleware": len}, ["/overlay in this server"]),
        ({"app": SimpleNamespace(router=SimpleNamespace(routes=())), "add_prometheus_middleware": len},
         ["/overlay in this server"]),
        ({"app": FastAPI()}, ["metrics of the patches"]),
    ],
)  # fmt: skip
def test_an_app_of_another_shape_is_left_alone(
    names: dict[str, Any], lacking: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ModuleType(attach.SERVER)
    vars(server).update(names)
    monkeypatch.setitem(sys.modules, attach.SERVER, server)
    attach.attach(Ledger(), None, dict, {attach.SERVER: server})
    said = [line.removeprefix("[amd-sglang] no ").partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == lacking


def test_a_status_that_cannot_be_read_costs_no_metric_of_sglangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    def broken() -> dict[str, object]:
        raise RuntimeError("no such luck")

    app = FastAPI()
    app.router.routes.append(mount(Snapshot(None, broken, lambda: 1)))
    answer = TestClient(app).get("/metrics")
    assert (answer.status_code, "amd_sglang" in answer.text) == (200, False)
    assert "no metrics of the patches: RuntimeError: no such luck" in capsys.readouterr().err


def test_nodes_are_known_where_the_app_says_so() -> None:
    apps = (
        SimpleNamespace(server_args=SimpleNamespace(nnodes=4)),
        SimpleNamespace(),
        SimpleNamespace(server_args=None),
    )
    assert [attach.nodes(app) for app in apps] == [4, None, None]

"""Launch configurations as data: what ships is sound, what is damaged is refused, what is there is used."""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton

from benchmarks import tune
from patches.kernels import gemma_rmsnorm, mhc, qk_norm_mrope, sparse_mla, tuning
from patches.kernels.qk_norm_mrope import Geometry
from patches.kernels.tuning import FOLDER, SPACES, TunedDataError

GEOMETRY = Geometry(32, 8, 128, (24, 20, 20), True, True, 1e-6)

SOUND: dict[str, Any] = {
    "arch": "gfx0",
    "kernels": {
        "gemma_rmsnorm": {
            "chosen": "compiled",
            "provenance": {"reason": "no GPU", "command": "x", "versions": {}},
            "classes": {"n=4096": {"config": {"rows": 2, "num_warps": 8}, "evidence": {"vgprs": 40}}},
        }
    },
}


def written(folder: Path, content: object) -> Path:
    path = folder / "gfx0.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


class TestShipped:
    def test_every_file_was_read_when_the_module_was(self) -> None:
        names = {path.stem for path in FOLDER.glob("*.json")}
        assert {"gfx942", "gfx950", "gfx1100", "gfx1201"} <= names == set(tuning._TABLES)

    @pytest.mark.parametrize("path", sorted(FOLDER.glob("sm*.json")), ids=lambda path: path.stem)
    def test_a_measured_configuration_is_a_candidate(self, path: Path) -> None:
        """What `benchmarks.tune` would try today: data and code have not drifted apart."""
        for (kernel, shape_class), config in tuning.read(path).items():
            sizes = tune.classes_of(tune.TUNABLES[kernel])[shape_class]
            assert config in list(tune.candidates(kernel, sizes[0].case.parameters, 32)), (kernel, shape_class)

    def test_nothing_that_was_compiled_claims_a_time(self) -> None:
        for path in FOLDER.glob("*.json"):
            for kernel, section in json.loads(path.read_text())["kernels"].items():
                timed = "microseconds" in json.dumps(section)
                assert timed == (section["chosen"] == "measured"), (path.name, kernel)
                assert section["chosen"] == ("compiled" if path.stem.startswith("gfx") else "measured")


def _replace(*keys: str, by: object) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = by

    return change


_NORM = ("kernels", "gemma_rmsnorm")
_CLASSES = (*_NORM, "classes")
_ENTRY = (*_CLASSES, "n=4096")

DAMAGES = {
    "another arch": (_replace("arch", by="gfx1"), "named after 'gfx0'"),
    "no kernels": (_replace("kernels", by=None), "kernels"),
    "an unknown kernel": (_replace("kernels", "softmax", by={}), "softmax"),
    "a section of another shape": (_replace(*_NORM, by=[]), "chosen"),
    "neither measured nor compiled": (_replace(*_NORM, "chosen", by="guessed"), "guessed"),
    "no provenance": (_replace(*_NORM, "provenance", by={}), "reason"),
    "an unknown class": (_replace(*_CLASSES, by={"n=big": {}}), "n=big"),
    "no evidence": (_replace(*_ENTRY, "evidence", by={}), "evidence"),
    "a missing parameter": (_replace(*_ENTRY, "config", by={"rows": 1}), "num_warps"),
    "a value outside the space": (_replace(*_ENTRY, "config", "num_warps", by=3), "num_warps is 3"),
    "a flag": (_replace(*_ENTRY, "config", "rows", by=True), "rows is True"),
    "a value of another type": (_replace(*_ENTRY, "config", "num_warps", by="8"), "num_warps is '8'"),
}


class TestRead:
    def test_a_sound_file(self, tmp_path: Path) -> None:
        read = tuning.read(written(tmp_path, SOUND))
        assert read == {("gemma_rmsnorm", "n=4096"): {"rows": 2, "num_warps": 8}}

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_file_is_refused_by_name(self, damage: str, tmp_path: Path) -> None:
        change, names = DAMAGES[damage]
        content = copy.deepcopy(SOUND)
        change(content)
        path = written(tmp_path, content)
        with pytest.raises(TunedDataError) as refused:
            tuning.read(path)
        assert str(path) in str(refused.value) and names in str(refused.value)
        assert "Install amd-sglang-overlay again" in str(refused.value)

    def test_what_is_no_json(self, tmp_path: Path) -> None:
        with pytest.raises(TunedDataError, match=r"gfx0\.json"):
            tuning.read(written(tmp_path, "{"))

    def test_a_class_of_each_kernel(self) -> None:
        """The pattern of a kernel's classes takes what the kernel asks for."""
        asked = {
            "gemma_rmsnorm": "n=4096",
            "qk_norm_mrope": qk_norm_mrope.shape_class(GEOMETRY),
            "mhc": "c=7168,norm=1",
            "sparse_mla": sparse_mla.shape_class(16),
        }
        assert asked.keys() == SPACES.keys()
        for kernel, shape_class in asked.items():
            config = {name: values[0] for name, values in SPACES[kernel].parameters.items()}
            entry = {"config": config, "evidence": {"vgprs": 1}}
            assert not list(tuning._entry_faults(kernel, shape_class, entry))


class TestLookup:
    @pytest.fixture(autouse=True)
    def _a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Of an architecture with an entry for each kernel, beside which the formulas would choose otherwise."""
        target = SimpleNamespace(backend="hip", arch="gfx0", warp_size=64)
        active = SimpleNamespace(get_current_target=lambda: target)
        monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=active))
        table = {
            ("gemma_rmsnorm", "n=4096"): {"rows": 2, "num_warps": 4},
            ("qk_norm_mrope", "q=32,kv=8,d=128"): {"heads": 8, "num_warps": 1},
            ("mhc", "c=7168,norm=0"): {"block_split": 128, "post_warps": 8, "block_pre": 512, "pre_warps": 4},
            ("sparse_mla", "h<=16"): {"block_h": 16, "block_n": 16, "num_warps": 8, "num_stages": 2},
        }
        monkeypatch.setitem(tuning._TABLES, "gfx0", table)
        for kernel in (gemma_rmsnorm, qk_norm_mrope, mhc, sparse_mla):
            monkeypatch.setattr(kernel, "_INTERPRETED", False)
        self.forget()
        yield
        self.forget()

    def forget(self) -> None:
        tuning.current_arch.cache_clear()
        for function in (
            gemma_rmsnorm._current_launch_config,
            qk_norm_mrope._current_config,
            qk_norm_mrope._current_launch,
            mhc._current_config,
            sparse_mla._current_config,
        ):
            function.cache_clear()

    def test_an_entry_is_taken(self) -> None:
        assert gemma_rmsnorm._current_launch_config(4096) == (4096, 2, 4)
        assert qk_norm_mrope._current_launch(GEOMETRY) == ((8, 1), 4 + 2)
        assert mhc._current_config(7168, False) == (16, 128, 8, 512, 4)
        assert sparse_mla._current_config(16) == (16, 16, 8, 2)

    def test_without_one_the_formula_decides(self) -> None:
        assert gemma_rmsnorm._current_launch_config(5120) == gemma_rmsnorm.launch_config(5120, 64)
        wider = GEOMETRY._replace(num_q_heads=64)
        assert qk_norm_mrope._current_config(wider) == qk_norm_mrope.launch_config(wider, 64)
        assert mhc._current_config(7168, True) == mhc.launch_config(7168, True, 64)
        assert sparse_mla._current_config(17) == sparse_mla.launch_config(17)
        assert sparse_mla._current_config(16, 4) == sparse_mla.launch_config(16, 4)

    @pytest.mark.parametrize(
        ("backend", "arch", "name"), [("cuda", 90, "sm90"), ("hip", "gfx942:sramecc+:xnack-", "gfx942")]
    )
    def test_the_name_of_an_architecture(
        self, backend: str, arch: object, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = SimpleNamespace(backend=backend, arch=arch)
        monkeypatch.setattr(triton.runtime.driver.active, "get_current_target", lambda: target)
        assert tuning.current_arch() == name


class TestTune:
    @pytest.mark.parametrize("kernel", SPACES)
    @pytest.mark.parametrize("warp_size", [32, 64])
    def test_the_formulas_choice_is_in_the_space(self, kernel: str, warp_size: int) -> None:
        tunable = tune.TUNABLES[kernel]
        for sizes in tune.classes_of(tunable).values():
            formula = tunable.formula(sizes[0].case.parameters, warp_size)._asdict()
            own = {name: formula[name] for name in SPACES[kernel].parameters}
            assert own in list(tune.candidates(kernel, sizes[0].case.parameters, warp_size))

    def test_the_choice_is_the_one_that_is_nowhere_far_from_the_best(self) -> None:
        times: tune.Times = {(1,): [1.0, 9.0], (2,): [1.1, 5.5], (4,): [2.0, 5.0]}
        assert [tune.regret(times, values) for values in times] == pytest.approx([1.8, 1.1, 2.0])
        assert tune.best_of(times, (4,)) == (2,)

    def test_noise_does_not_displace_the_formula(self) -> None:
        times: tune.Times = {(1,): [1.005, 5.0], (2,): [1.0, 5.0]}
        assert tune.best_of(times, (1,)) == (1,)
        assert tune.best_of({**times, (1,): [1.02, 5.0]}, (1,)) == (2,)

    def test_a_written_file_is_read_and_keeps_other_classes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
        entries = [
            {f"n={n}": {"config": {"rows": 1, "num_warps": 8}, "evidence": {"4096, 1": 1.5}}} for n in (4096, 7168)
        ]
        for entry in entries:
            path = tune.write(tmp_path, "sm90", "gemma_rmsnorm", entry, "the command")
        assert set(tuning.read(path)) == {("gemma_rmsnorm", "n=4096"), ("gemma_rmsnorm", "n=7168")}
        assert json.loads(path.read_text())["kernels"]["gemma_rmsnorm"]["provenance"]["command"] == "the command"

    def test_a_class_that_the_budget_cuts_short_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = itertools.count()
        monkeypatch.setattr(tune, "GraphTimer", lambda: None)
        monkeypatch.setattr(tune, "microseconds", lambda *_: (1.0, {}))
        monkeypatch.setattr(time, "monotonic", lambda: next(clock))
        assert not tune.tune("qk_norm_mrope", 5.0, 32)
        assert len(tune.tune("qk_norm_mrope", 1e9, 32)) == 3

    def test_a_configuration_that_is_less_exact_is_not_chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def measured(_tunable: object, _sized: object, config: dict[str, int], _timer: object) -> Any:
            exact = config == {"heads": 4, "num_warps": 4}
            return (2.0, {"largest error": 0.1}) if exact else (1.0, {"largest error": 0.3})

        monkeypatch.setattr(tune, "GraphTimer", lambda: None)
        monkeypatch.setattr(tune, "microseconds", measured)
        entries = tune.tune("qk_norm_mrope", 1e18, 32)
        assert all(entry["config"] == {"heads": 4, "num_warps": 4} for entry in entries.values())

"""The few server arguments that decide whether a second stream can run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerArguments:
    """What `sglang.launch_server` would be told. Abbreviations, which argparse would accept, are not recognised."""

    given: tuple[str, ...] = ()

    @classmethod
    def of(cls, arguments: Sequence[str]) -> ServerArguments:
        return cls(tuple(arguments))

    @property
    def disables_shared_expert_fusion(self) -> bool:
        return self._has("--disable-shared-experts-fusion")

    @property
    def disables_graphs(self) -> bool:
        return self._has("--disable-cuda-graph")

    @property
    def a2a_backend(self) -> str:
        """The MoE all-to-all backend; --enable-deepep-moe is its old spelling (server_args.py, 0.5.6)."""
        return self._last("--moe-a2a-backend") or ("deepep" if self._has("--enable-deepep-moe") else "none")

    @property
    def deepep_mode(self) -> str:
        return self._last("--deepep-mode") or "auto"

    @property
    def config_file(self) -> str | None:
        return self._last("--config")

    def _has(self, flag: str) -> bool:
        return flag in self.given

    def _last(self, option: str) -> str | None:
        """The value argparse would keep: the last one, written `--option value` or `--option=value`."""
        value = None
        for at, argument in enumerate(self.given):
            name, equals, rest = argument.partition("=")
            if name == option:
                value = rest if equals else next(iter(self.given[at + 1 : at + 2]), None)
        return value

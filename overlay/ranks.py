"""The exchange of accounts between the ranks of a server, through the key-value store of torch.distributed.

The store and not a collective: a rank on which sglang runs without the overlay never enters a collective of ours, and
the others would hang in it; in the store its key does not appear. A rank that joins later (sglang's elastic expert
parallelism) could not take part in one either; here it finds what the others left.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from overlay.agreement import Account, difference

_PREFIX = "amd-sglang/1"  # the number is that of this exchange: who speaks another one is not heard
_FAREWELL_SECONDS = 5.0


class Store(Protocol):
    """What is used of a `torch.distributed.Store`. All raise RuntimeError when the rank that keeps it is gone."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...


@dataclass(frozen=True)
class World:
    """The ranks that sglang has connected, and the store they share."""

    store: Store
    rank: int
    size: int

    def compare(self, stage: str, account: Account, patience: float) -> str | None:
        """What all ranks make of their accounts, the same sentence on each: None if they agree.

        Waits at most `patience` seconds for the others, and returns at once if the store is lost.
        """
        try:
            accounts = self._exchange(stage, account, patience)
        except RuntimeError as error:
            # Whoever keeps the store has ended, and the server with it: nothing is left to wait for.
            return f"rank {self.rank} of {self.size} lost the others before it could compare its patches: {error}"
        objection = difference(accounts, patience)
        if objection is not None:
            self._part(stage, [key for key, one in zip(self._keys(stage), accounts.values(), strict=True) if one])
        return objection

    def tell(self, stage: str, account: Account) -> None:
        """Leave an account for the others without waiting for theirs."""
        with contextlib.suppress(RuntimeError):  # the others are gone already
            self.store.set(self._keys(stage)[self.rank], account.to_json())

    def _exchange(self, stage: str, account: Account, patience: float) -> dict[str, Account | None]:
        keys = self._keys(stage)
        self.store.set(keys[self.rank], account.to_json())
        _until(lambda: self.store.check(keys), patience)
        texts = [self.store.get(key) if self.store.check([key]) else None for key in keys]
        return {f"rank {rank}": _read(text) for rank, text in enumerate(texts)}

    def _part(self, stage: str, present: Sequence[str]) -> None:
        """All ranks are about to fail, and sglang to end their nodes: each waits until the others have read as well,
        for the store ends with rank 0."""
        with contextlib.suppress(RuntimeError):  # it has ended
            self.store.set(f"{self._keys(stage)[self.rank]}/read", "")
            _until(lambda: self.store.check([f"{key}/read" for key in present]), _FAREWELL_SECONDS)

    def _keys(self, stage: str) -> list[str]:
        return [f"{_PREFIX}/{stage}/{rank}" for rank in range(self.size)]


def world() -> World | None:
    """The world of this process once sglang has set it up; None for a server of one rank."""
    # Looked up, not imported: where nobody has imported torch there are no ranks.
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    if distributed.get_world_size() == 1:
        return None
    # It has no public name. Every group of sglang is split from the default one, whose store this is.
    store = distributed.distributed_c10d._get_default_store()
    return World(store, distributed.get_rank(), distributed.get_world_size())


def _read(text: bytes | None) -> Account | None:
    """An account; None where there is none that can be read."""
    with contextlib.suppress(ValueError):
        return None if text is None else Account.from_json(text)
    return None


def _until(done: Callable[[], bool], seconds: float) -> None:
    """Return when `done()`, or when so many seconds have passed."""
    deadline, pause = time.monotonic() + seconds, 0.01
    while not done() and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 0.5)

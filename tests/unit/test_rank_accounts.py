"""Three real ranks of torch.distributed (gloo) compare what they say of themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from demo.server import free_port
from overlay import ranks
from overlay.agreement import Account
from tests.unit.engine_support import ROOT, clean_environ

SIZE = 3
PATIENCE = 1.0


def main(rank: int, port: int) -> None:
    """One rank: goes through every situation, each a stage of its own in the one store, and prints what it heard."""
    import torch
    from torch._C._distributed_c10d import HashStore

    assert ranks.world() is None, "nothing is connected yet"
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    assert ranks.world() is None, "a rank alone has nobody to ask"
    torch.distributed.destroy_process_group()
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=SIZE)
    world = ranks.world()
    assert world is not None and (world.rank, world.size) == (rank, SIZE)

    def alike(fact: str = "in force") -> Account:
        return Account(f"pid {os.getpid()}", {"alpha": fact})

    heard = {"alike": world.compare("alike", alike(), 60), "again": world.compare("alike", alike(), 60)}
    heard["differ"] = world.compare("differ", alike("disabled" if rank == 1 else "in force"), 60)
    if rank == 2:
        world.store.set("amd-sglang/1/strange/2", "not what a rank writes")
        world.tell("told", alike("failed"))
    else:
        heard["silent"] = world.compare("silent", alike(), PATIENCE)
        heard["strange"] = world.compare("strange", alike(), PATIENCE)
        heard["told"] = world.compare("told", alike(), 60)
    torch.distributed.barrier()
    if rank > 0:  # rank 0, which keeps the store, ends
        heard["lost"] = world.compare("lost", alike(), 60)
    print(json.dumps({"pid": os.getpid(), **heard}), flush=True)
    os._exit(0)  # a process group without rank 0 cannot be taken down


@pytest.fixture(scope="module")
def said() -> list[dict[str, str | None]]:
    """What each rank said, by rank."""
    environ = clean_environ(PYTHONPATH=str(ROOT))
    port = str(free_port())
    command = [sys.executable, "-m", "tests.unit.test_rank_accounts"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), port], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(SIZE)
    ]
    try:
        ended = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * SIZE, [err[-2000:] for _, err in ended]
    return [json.loads(out) for out, _ in ended]


def test_ranks_that_are_alike_go_on_and_may_ask_again(said: list[dict[str, str | None]]) -> None:
    assert [(one["alike"], one["again"]) for one in said] == [(None, None)] * SIZE


def test_every_rank_hears_the_same_difference(said: list[dict[str, str | None]]) -> None:
    (sentence,) = {one["differ"] for one in said}
    zero, one, two = (said[rank]["pid"] for rank in range(SIZE))
    assert sentence is not None
    assert sentence.startswith(
        f"the ranks of this server are not alike: alpha in force on rank 0 (pid {zero}) and rank 2 (pid {two}), "
        f"but disabled on rank 1 (pid {one}). "
    )


@pytest.mark.parametrize("situation", ["silent", "strange"])
def test_a_rank_that_says_nothing_we_can_read_is_named_in_time(
    said: list[dict[str, str | None]], situation: str
) -> None:
    for rank in (0, 1):
        assert f"rank 2 of 3 gave no account within {PATIENCE:g} s" in str(said[rank][situation])


def test_a_rank_that_is_leaving_is_heard_without_waiting_for_the_others(said: list[dict[str, str | None]]) -> None:
    for rank in (0, 1):
        assert "but failed on rank 2" in str(said[rank]["told"])


def test_without_the_rank_that_keeps_the_store_nobody_waits(said: list[dict[str, str | None]]) -> None:
    for rank in (1, 2):
        assert f"rank {rank} of 3 lost the others before it could compare its patches" in str(said[rank]["lost"])


def test_a_process_that_never_imported_torch_has_no_ranks() -> None:
    code = "from overlay import ranks; import sys; print(ranks.world(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(ROOT), capture_output=True, text=True, check=True)
    assert done.stdout == "None False\n"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

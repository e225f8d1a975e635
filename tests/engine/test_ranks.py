"""Ranks of the real engine, in processes that torch.distributed connects over gloo: those that are patched alike serve,
and those that are not end, on every node, before a weight is loaded."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest

from demo.__main__ import SERVE_ARGUMENTS
from demo.server import Server, ServerError, free_port
from overlay import status
from tests.engine.runs import SCRIPT, schedulers
from tests.releases import run_simulated

AMD_SGLANG = Path(sys.executable).with_name("amd-sglang")
pytestmark = pytest.mark.engine


def test_two_ranks_of_one_plan_serve(checkpoint: Path, tmp_path: Path) -> None:
    command = (str(SCRIPT), str(checkpoint), "2", '{"tp_size": 2}')
    done = run_simulated("0.5.23", *command, AMD_SGLANG_RUN_DIR=str(tmp_path))
    assert done.returncode == 0 and "TOKENS" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]
    ranks = schedulers(tmp_path)
    assert sorted(json.dumps(row["ranks"]) for row in ranks) == ['{"tp": 0}', '{"tp": 1}']
    (plan,) = {row["plan"] for row in ranks}
    assert re.findall(r"\[amd-sglang\] (\d+ ranks agree on plan \w+)", done.stderr) == [f"2 ranks agree on plan {plan}"]


def test_a_node_with_another_plan_ends_the_server_on_both(checkpoint: Path, tmp_path: Path) -> None:
    """Two nodes of one server, as they are started on two machines; on the second somebody added a switch."""
    meeting = f"127.0.0.1:{free_port()}"

    def node(rank: int, *options: str) -> Server:
        place = ("--tp=2", "--nnodes=2", f"--node-rank={rank}", f"--dist-init-addr={meeting}")
        model = ("--model-path", str(checkpoint), "--dtype=bfloat16", "--skip-tokenizer-init", "--port={port}")
        return Server(
            [AMD_SGLANG, "launch", "--simulate=gfx942", *options, *model, *place, *SERVE_ARGUMENTS],
            log=tmp_path / f"node{rank}.log",
            environment={"AMD_SGLANG_RUN_DIR": str(tmp_path / f"runs{rank}")},
        )

    with node(0) as first, node(1, "--disable=gemma-rmsnorm") as second:
        with pytest.raises(ServerError, match="ended with status"):
            first.wait_ready(timeout=180)
        deadline = time.monotonic() + 30
        while second.is_running() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not second.is_running()
        logs = [server.log.read_text() for server in (first, second)]
    rows = [row for rank in (0, 1) for row in status.read_runs(tmp_path / f"runs{rank}")]
    sentences = [set(re.findall(r"\[amd-sglang\] (the ranks of this server .*)", log)) for log in logs]
    assert sentences[0] == sentences[1] and len(sentences[0]) == 1, "every rank says the same"
    (sentence,) = sentences[0]
    found = re.match(
        r"the ranks of this server are not alike: gemma-rmsnorm in force \(\w+\) on rank 0 \(TP0, pid (\d+) on \S+\), "
        r"but disabled on rank 1 \(TP1, pid (\d+) on \S+\), switched off by --disable",
        sentence,
    )
    assert found is not None, sentence
    assert {int(pid) for pid in found.groups()} <= {row["pid"] for row in rows}
    assert "Load weight begin" not in logs[0] + logs[1] and "ready to roll" not in logs[0]

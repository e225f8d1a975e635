"""What a layer of sglang needs around it to be built: a server's arguments and parallel groups of one process."""

from __future__ import annotations

import dataclasses
import socket
from functools import cache
from typing import Any


@cache
def start() -> Any:
    """Make this process the only rank of a server, once; returns its arguments: all default, but no fused experts."""
    from sglang.srt import server_args
    from sglang.srt.distributed import parallel_state
    from sglang.srt.layers import dp_attention

    if dataclasses.is_dataclass(server_args.ServerArgs):
        made = _defaults(server_args.ServerArgs)
        made.model_path, made.disable_shared_experts_fusion = "none", True
    else:  # since 0.5.20
        made = server_args.ServerArgs(model_path="none", disable_shared_experts_fusion=True)
    _publish(made)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    parallel_state.init_distributed_environment(1, 0, f"tcp://127.0.0.1:{port}", 0, backend="gloo")
    parallel_state.initialize_model_parallel()
    # What initialize_dp_attention sets without data parallelism; it also asks for a model configuration.
    alone = {"ATTN_TP_RANK": 0, "ATTN_TP_SIZE": 1, "ATTN_DP_RANK": 0, "ATTN_DP_SIZE": 1, "LOCAL_ATTN_DP_SIZE": 1}
    for name, value in {**alone, "LOCAL_ATTN_DP_RANK": 0, "ENABLE_DP_ATTENTION_FLAG": False}.items():
        setattr(dp_attention, f"_{name}", value)
    return made


def _publish(arguments: Any) -> None:
    from sglang.srt import server_args

    try:
        from sglang.srt.runtime_context import SpawnRanks, publish
    except ImportError:  # before 0.5.21
        server_args.set_global_server_args_for_scheduler(arguments)
    else:
        publish(arguments, role="scheduler", ranks=SpawnRanks(0))


def _defaults(cls: Any) -> Any:
    """Built without the constructor, which would ask for a model and a GPU."""
    made = cls.__new__(cls)
    for field in dataclasses.fields(cls):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        setattr(made, field.name, None if default is dataclasses.MISSING else default)
    return made

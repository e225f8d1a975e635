"""Greedy tokens from a real `sglang.Engine`, scheduler process and all: `generate.py CHECKPOINT COUNT [ARGUMENTS]`.

Run by the tests under the overlay; ARGUMENTS are further ones of the engine, as a JSON object. Prints one line
`TOKENS [[...], ...]`.
"""

from __future__ import annotations

import json
import sys
import time

PROMPTS = [[5, 17, 33, 8, 61], [70, 12, 9]]


def main() -> None:
    more = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    if more.get("use_ray"):
        from sglang.srt.ray.engine import RayEngine as Engine
    else:
        from sglang import Engine
    engine = Engine(
        model_path=sys.argv[1],
        dtype="bfloat16",
        attention_backend="triton",
        disable_cuda_graph=True,
        triton_attention_num_kv_splits=1,
        max_total_tokens=1024,
        skip_tokenizer_init=True,
        **more,
    )
    sampling = {"temperature": 0, "max_new_tokens": int(sys.argv[2]), "ignore_eos": True}
    answers = engine.generate(input_ids=PROMPTS, sampling_params=sampling)
    # sglang kills its processes; the simulation writes its counters twice a second.
    time.sleep(1.5)
    print("TOKENS " + json.dumps([answer["output_ids"] for answer in answers]), flush=True)
    engine.shutdown()


if __name__ == "__main__":
    main()

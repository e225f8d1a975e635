"""Speed and accuracy of this project's kernels beside every other implementation that runs on the machine.

``python -m benchmarks`` times the kernels one by one, ``python -m benchmarks.norm_engine`` and
``python -m benchmarks.dual_stream_engine`` the real sglang. What a kernel is compared with, beyond torch, is fetched by
``python -m benchmarks.peers``.
"""

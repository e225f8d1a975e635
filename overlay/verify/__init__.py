"""Whether the kernels of the patches compute what they promise on the GPU at hand, and how fast.

`case` and `shapes` are what a patch's `kernels` are written in, by anyone. The rest runs them: `amd-sglang verify`
decides in the launcher (`start`), reports in a program of its own (`__main__`), and measures in the children of that
(`worker`), which alone load torch.
"""

"""Other implementations of what this project's kernels compute: how they get here, and how they are loaded.

They live in `.peers`, which `python -m benchmarks.peers` fills: whole packages where these are small, else the files
that hold one operation, byte for byte as released, below packages whose other files are left out.
"""

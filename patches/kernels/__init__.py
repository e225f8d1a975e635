"""Triton kernels that the patches call; each is usable, and tested, without SGLang."""

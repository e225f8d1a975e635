"""Contract fakes of `aiter` and `sgl_kernel`: their names and signatures, with PyTorch for what sglang reaches."""

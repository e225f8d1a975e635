"""What `amd-sglang verify` runs: for each kernel its definition, the operations that it replaces, and its cases."""

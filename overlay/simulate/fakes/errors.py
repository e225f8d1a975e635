"""How a fake refuses. Neither error is an ImportError or a RuntimeError: sglang takes those for a feature that is
absent and falls back without a word (its MoE layers catch RuntimeError), and a run would prove the wrong code."""

from __future__ import annotations


class MissingBodyError(Exception):
    """Something was called that exists in the real package and has no PyTorch body here."""


class UncoveredNameError(Exception):
    """A name was asked for of which the contract does not say whether the real package has it."""

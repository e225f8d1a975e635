"""The patches this distribution ships, in the order in which they are decided and applied.

Importing this package imports neither torch nor sglang: a patch loads its kernels when it is applied.
"""

from overlay.model import Patch
from patches import gemma_rmsnorm

PATCHES: tuple[Patch, ...] = (gemma_rmsnorm.PATCH,)

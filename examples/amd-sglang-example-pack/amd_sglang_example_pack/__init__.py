"""A third-party pack for amd-sglang. Importing it imports neither torch nor sglang."""

from amd_sglang_example_pack import weight_report
from overlay.model import Patch

PATCHES: tuple[Patch, ...] = (weight_report.PATCH,)

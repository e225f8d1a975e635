"""`python -m overlay`: run any Python program under the overlay."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

if __name__ == "__main__":
    # By its place, not by its name: the working directory comes first on the path and may hold a launcher.py too.
    spec = spec_from_file_location("amd_sglang_launcher", Path(__file__).parent.parent / "launcher.py")
    assert spec is not None and spec.loader is not None
    launcher = module_from_spec(spec)
    spec.loader.exec_module(launcher)
    launcher.wrapper()

"""With this folder on PYTHONPATH a program, and all that it starts, has the stand-in for CuPy.

ICNN_HOSTCUDA_CHECKED=0 compiles kernels for speed, without the checker.
"""

import os
import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / name) for name in ("fake_cupy", "checker")]

import standin

standin.CHECKED = os.environ.get("ICNN_HOSTCUDA_CHECKED") != "0"
sys.modules[__name__] = standin.cupy

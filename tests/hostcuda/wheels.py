"""What the tests of machine code share: the benchmarks' modules, importable, and a skip without NVIDIA's wheels."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from machine_code import ToolMissing  # noqa: E402


def require(*tools: Callable[[], object]) -> None:
    """Skip where something asks for a wheel that is not installed, or fail where it must be."""
    try:
        for tool in tools:
            tool()
    except ToolMissing as error:
        if os.environ.get("ICNN_REQUIRE_CUDA_WHEELS") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))

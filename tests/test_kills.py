"""Twenty kills of small trainings; ``python tests/kills.py --kills 1000`` is the long form."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_kills_lose_nothing_and_change_no_bit():
    """In a process of its own: the harness forks, which one with threads should not."""
    harness = Path(__file__).parent / "kills.py"
    done = subprocess.run([sys.executable, harness, "--kills", "20"], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("20 kills of ")

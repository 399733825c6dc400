"""Numbers and names as text, for the terminal and for the page."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from icnn.evaluate.metrics import MEASURES


def finite(value: Any) -> float | None:
    """Return `value` as a float, or None if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    return float(value) if math.isfinite(value) else None


def digits(value: Any, missing: str = "–") -> str:
    """Format a score with three decimals and no leading zero (.813); `missing` if it is not a finite number."""
    number = finite(value)
    return missing if number is None else f"{number:.3f}".removeprefix("0")


def decimals(value: Any, places: int = 3) -> str:
    """Format a number that may exceed 1 with `places` decimals; – if it is not a finite number."""
    number = finite(value)
    return "–" if number is None else f"{number:,.{places}f}".replace("-", "−")


def count(number: int, word: str) -> str:
    """Format a count with its noun, with a plural s unless it is 1: "1 image", "2 images"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def part_name(name: str) -> str:
    """Return a part's or measure's name with spaces instead of underscores."""
    return name.replace("_", " ")


def score_cells(scores: Mapping[str, Any], missing: str = "–") -> list[str]:
    """Format one model's scores; an absent measure becomes a dash, a measure of None becomes `missing`."""
    return [digits(scores[measure], missing) if measure in scores else "–" for measure in MEASURES]

"""What a part of the report has found so far, in its file from the first figure on: a kill loses nothing."""

import json
import time
from pathlib import Path
from typing import Any

from minicnn.checkpoint import atomic_path


class Part:
    """The results of one part, and the time that it has.

    Parameters
    ----------
    file : path
        Where they are written, as JSON, whenever something is added.
    end : float
        When the part must be over, by `time.monotonic`, which counts alike in all processes of a machine.
    """

    def __init__(self, file: Path, end: float):
        self._file, self._end = file, end
        self.found: dict[str, Any] = {"wrong": [], "lacking": []}

    def left(self) -> float:
        """Seconds until the part must be over; negative afterwards."""
        return self._end - time.monotonic()

    def put(self, **figures: object) -> None:
        """Add figures, or replace those of the same names."""
        self.found.update(figures)
        with atomic_path(self._file) as temporary:
            temporary.write_text(json.dumps(self.found), encoding="utf-8")

    def require(self, good: bool, text: str) -> None:
        """Note what is not as it should be."""
        if not good:
            self.put(wrong=[*self.found["wrong"], text])

    def lack(self, text: str) -> None:
        """Note what could not be measured, and why."""
        self.put(lacking=[*self.found["lacking"], text])

"""Interlinked convolutional neural networks for face parsing (Zhou, Hu and Zhang).

>>> from icnn import FaceParser
>>> result = FaceParser().parse(image)  # a PIL image, or an array (H, W, 3) uint8
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from icnn.parse.parser import FaceParser

__all__ = ["FaceParser"]


def __getattr__(name: str):
    """Import `FaceParser` on first access, because it imports NumPy and Pillow."""
    if name != "FaceParser":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from icnn.parse.parser import FaceParser

    return FaceParser

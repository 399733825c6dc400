"""The five networks and the six patches of the pipeline (Fig. 2, Sec. 3)."""

from dataclasses import dataclass

import numpy as np

from icnn.classes import PARTS


@dataclass(frozen=True)
class Network:
    """One of the five networks.

    Attributes
    ----------
    ids : tuple of int
        Part ids of its labels 1, 2, ..., on the left side of an image; label 0 is the background.
    size : int
        Side of its square input, pixels.
    measures : tuple of str
        Names of the F-measures (`icnn.evaluate.metrics`) of its parts.
    """

    ids: tuple[int, ...]
    size: int
    measures: tuple[str, ...]

    @property
    def labels(self) -> int:
        """Number of classes L, including the background."""
        return 1 + len(self.ids)


NETWORKS = {
    "stage1": Network(tuple(range(1, 9)), 64, ("eyebrow", "eye", "nose", "upper_lip", "inner_mouth", "lower_lip")),
    "eyebrow": Network((1,), 64, ("eyebrow",)),
    "eye": Network((2,), 64, ("eye",)),
    "nose": Network((5,), 64, ("nose",)),
    "mouth": Network((6, 7, 8), 80, ("upper_lip", "inner_mouth", "lower_lip")),
}  # fmt: skip

STAGE2 = tuple(name for name in NETWORKS if name != "stage1")


@dataclass(frozen=True)
class Patch:
    """A patch of stage 2: its network, its part ids, and whether it is mirrored for the network."""

    name: str
    network: str
    ids: tuple[int, ...]
    mirrored: bool = False

    @property
    def size(self) -> int:
        """Side of the patch, pixels."""
        return NETWORKS[self.network].size

    def to_network_labels(self) -> np.ndarray:
        """Return the table id -> label of this patch's network, (9,) uint8; parts of the other side are background."""
        table = np.zeros(len(PARTS), np.uint8)
        table[list(self.ids)] = np.arange(1, len(self.ids) + 1)
        return table

    def to_ids(self) -> np.ndarray:
        """Return the table label of this patch's network -> id, (L,) uint8."""
        return np.array((0, *self.ids), np.uint8)


#: The six patches, in the order of part centres in all arrays.
PATCHES = (
    Patch("left_eyebrow", "eyebrow", (1,)),
    Patch("left_eye", "eye", (2,)),
    Patch("right_eyebrow", "eyebrow", (3,), mirrored=True),
    Patch("right_eye", "eye", (4,), mirrored=True),
    Patch("nose", "nose", (5,)),
    Patch("mouth", "mouth", (6, 7, 8)),
)

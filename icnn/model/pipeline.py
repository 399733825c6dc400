"""Stage 1, patches, stage 2, full label map (Fig. 2)."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from icnn.data.geometry import Letterbox
from icnn.data.resample import maps_of, normalise, resize, side_by_side, warp
from icnn.model.centres import DEFAULT_LAYOUT, complete_centres, face_scale, part_centres
from icnn.model.modulation import PLAIN, Pair, probabilities
from icnn.model.patches import joint_probabilities, network_input, paste_patches, patch_origin
from icnn.model.weights import read_network
from icnn.stages import NETWORKS, PATCHES, STAGE2, Patch
from minicnn import Plan

#: A network in use: normalised images (n, 3, S, S) float32 -> logits (n, L, S, S).
Predict = Callable[[np.ndarray], np.ndarray]


class Located(NamedTuple):
    """Part centres of n images: (n, 6, 2) x and y in image pixels, which were found (n, 6), stage 1's labels."""

    centres: np.ndarray
    found: np.ndarray
    labels: np.ndarray


class PatchLogits(NamedTuple):
    """Stage 2 on n images, for each of the six patches: top-left corners (n, 2) and logits (n, L, S, S)."""

    origins: list[np.ndarray]
    logits: list[np.ndarray]


USUAL_SIDE = 256.0  # of the photographs of Smith et al., for weights that do not say
#: Scales of a face that stage 2 takes as they come: augmentation covers them, and resampling costs sharpness.
_ABOUT = 0.75, 1.33
_LARGEST = 2048  # pixels that a photograph's larger side grows to at most


class Pipeline:
    """The two stages.

    Parameters
    ----------
    networks : mapping of name to Predict
        All five names of `icnn.stages.NETWORKS`.
    pairs : mapping of name to (beta, beta0)
        Background modulation of the stage-2 networks; (1, 0) where absent.
    layout : (6, 2)
        Usual part centres in a stage-1 square of side 1: the fallback for parts that stage 1 does not find.
    side : float
        Larger side of the photographs that the networks were trained on, pixels: with `layout`, the size of a face.
    recentre : float
        Cut a patch once more where its part turns out to lie farther than so many pixels, along an axis, from its
        middle; 0: never.
    threads : int, optional
        For what is done image by image, beside the networks; default: all cores.
    """

    def __init__(
        self,
        networks: Mapping[str, Predict],
        pairs: Mapping[str, Pair] | None = None,
        layout: np.ndarray = DEFAULT_LAYOUT,
        side: float = USUAL_SIDE,
        recentre: float = 0.0,
        threads: int | None = None,
    ):
        self.networks = dict(networks)
        self.pairs = {name: (pairs or {}).get(name, PLAIN) for name in STAGE2}
        self.layout = np.asarray(layout)
        self.side = side
        self.recentre = recentre
        self.threads = threads

    def locate(self, images: Sequence[np.ndarray]) -> Located:
        """Stage 1 (Sec. 3.1): part centres of images (H, W, 3) uint8, sizes may differ."""
        boxes, insides, inputs = zip(*side_by_side(_square, images, self.threads), strict=True)
        logits = self.networks["stage1"](np.stack(inputs))
        labels = np.where(np.stack(insides), logits.argmax(1), 0).astype(np.uint8)
        square = np.stack([part_centres(label) for label in labels])
        usual = self.layout * NETWORKS["stage1"].size - 0.5
        complete = [complete_centres(centres, usual) for centres in square]
        centres = np.stack([box.to_image(points) for box, points in zip(boxes, complete, strict=True)])
        return Located(centres, ~np.isnan(square[..., 0]), labels)

    def label_patches(self, images: Sequence[np.ndarray], centres: np.ndarray) -> PatchLogits:
        """Stage 2 (Sec. 3.2): logits, before modulation, of the patches around `centres` (n, 6, 2).

        With `recentre` those whose part lies aside are cut and labelled once more, around its median.
        """
        origins, logits = [], []
        for number, patch in enumerate(PATCHES):
            corners = [
                patch_origin(centre[number], patch.size, image.shape[:2])
                for image, centre in zip(images, centres, strict=True)
            ]
            found = self._label_patch(images, corners, patch)
            moved = self._recentred(images, corners, patch, found) if self.recentre else {}
            if moved:
                again = self._label_patch([images[n] for n in moved], list(moved.values()), patch)
                found[list(moved)] = again
                corners = [moved.get(n, corner) for n, corner in enumerate(corners)]
            logits.append(found)
            origins.append(np.array(corners))
        return PatchLogits(origins, logits)

    def _recentred(
        self, images: Sequence[np.ndarray], corners: Sequence[tuple[int, int]], patch: Patch, logits: np.ndarray
    ) -> dict[int, tuple[int, int]]:
        """Number of image -> better corner (x, y), of the patches whose part is not in their middle."""
        moved = {}
        for n, labels in enumerate(logits.argmax(1)):
            y, x = np.nonzero(labels[:, ::-1] if patch.mirrored else labels)
            if not x.size:
                continue
            middle = (patch.size - 1) / 2
            median = np.array([np.median(x), np.median(y)])
            if np.abs(median - middle).max() > self.recentre:
                moved[n] = patch_origin(corners[n] + median, patch.size, images[n].shape[:2])
        return moved

    def _label_patch(
        self, images: Sequence[np.ndarray], corners: Sequence[tuple[int, int]], patch: Patch
    ) -> np.ndarray:
        """Logits (n, L, S, S) of one patch of every image."""
        pairs = zip(images, corners, strict=True)
        return self.networks[patch.network](np.stack([network_input(image, corner, patch) for image, corner in pairs]))

    def labels_of_patch(self, patch: Patch, logits: np.ndarray) -> np.ndarray:
        """Ids (n, S, S) uint8 of one patch as its network sees it, mirrored for right sides; modulation applied."""
        return patch.to_ids()[probabilities(logits, self.pairs[patch.network]).argmax(1)]

    def paste(self, shapes: Sequence[tuple[int, int]], patches: PatchLogits) -> list[np.ndarray]:
        """Full label maps (H, W) uint8 of ids from `label_patches`, modulation applied."""
        return [
            paste_patches(shape, PATCHES, *placed) for shape, placed in zip(shapes, self._placed(patches), strict=True)
        ]

    def joint_probabilities(self, shape: tuple[int, int], patches: PatchLogits) -> list[np.ndarray]:
        """Probability of every id (H, W, 9) float32 in images of one shape, modulation applied."""
        return [joint_probabilities(shape, PATCHES, *placed) for placed in self._placed(patches)]

    def _placed(self, patches: PatchLogits) -> Iterator[tuple[list[tuple[int, int]], list[np.ndarray]]]:
        """Corners and softmax maps of the six patches, image by image."""
        p = [
            probabilities(logits, self.pairs[patch.network])
            for patch, logits in zip(PATCHES, patches.logits, strict=True)
        ]
        for n in range(len(p[0])):
            yield [tuple(corners[n]) for corners in patches.origins], [maps[n] for maps in p]

    def label(self, images: Sequence[np.ndarray], centres: np.ndarray) -> list[np.ndarray]:
        """Label maps (H, W) uint8 of ids from part centres (n, 6, 2), by stage 2 at the scale of the training data.

        A face that is nearly as large as those is left as it is; else its photograph is resampled before, and the
        labels after.
        """
        shapes = [image.shape[:2] for image in images]
        factors = [self._factor(points, max(shape)) for points, shape in zip(centres, shapes, strict=True)]
        scaled, moved = list(images), np.array(centres, np.float64)
        for n, factor in enumerate(factors):
            if factor != 1:
                height, width = (max(1, round(factor * length)) for length in shapes[n])
                scaled[n] = np.rint(resize(images[n], (height, width))).astype(np.uint8)
                moved[n] = (moved[n] + 0.5) * (width / shapes[n][1], height / shapes[n][0]) - 0.5
        maps = self.paste([image.shape[:2] for image in scaled], self.label_patches(scaled, moved))
        for n, factor in enumerate(factors):
            if factor != 1:
                shares = resize(maps_of(maps[n]), shapes[n])
                maps[n] = np.rint(shares).argmax(-1).astype(np.uint8)  # rounded: a tie is one from either side
        return maps

    def _factor(self, centres: np.ndarray, side: int) -> float:
        """By what to resample a photograph with these centres (6, 2); 1 where its face is about as large as usual."""
        scale = face_scale(centres, self.layout * self.side)
        if _ABOUT[0] < scale < _ABOUT[1]:
            return 1.0
        return min(1 / max(scale, 1e-6), max(1.0, _LARGEST / side))

    def warm_up(self) -> None:
        """Run every network once, on an image of zeros: kernels that are not compiled yet are compiled now."""
        for name, predict in self.networks.items():
            size = NETWORKS[name].size
            predict(np.zeros((1, 3, size, size), np.float32))

    def parse(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Label maps (H, W) uint8 of ids of images (H, W, 3) uint8, both stages."""
        return self.label(images, self.locate(images).centres)


def _square(image: np.ndarray) -> tuple[Letterbox, np.ndarray, np.ndarray]:
    """How an image lies in the square of stage 1, which pixels it fills there, and what the network gets."""
    size = NETWORKS["stage1"].size
    box = Letterbox.of(image.shape[0], image.shape[1], size)
    values, inside = warp(image, box.matrix(), size)
    return box, inside, normalise(values, inside)


def predictor(plan: Plan) -> Predict:
    """A plan as `Predict`: any number of images, a batch at a time, logits copied out."""

    def predict(images: np.ndarray) -> np.ndarray:
        batches = range(0, len(images), plan.batch)
        return np.concatenate([plan.download(plan.forward(images[i : i + plan.batch])) for i in batches])

    return predict


def load_pipeline(folder: str | os.PathLike, backend: str, batch: int, threads: int | None = None) -> Pipeline:
    """Build the five networks from RUN/weights (or RUN itself), to be used as they were when their pairs were fitted.

    Raises
    ------
    InputError
        If a weights file is missing, damaged, or of another network.
    """
    stored = {name: read_network(Path(folder), name) for name in NETWORKS}
    networks = {}
    for name, one in stored.items():
        plan = Plan(one.graph, batch, backend, threads=threads)
        plan.assign(one.parameters)
        networks[name] = predictor(plan)
    layouts = [one.layout for one in stored.values() if one.layout is not None]
    sides = [one.side for one in stored.values() if one.side is not None]
    return Pipeline(
        networks,
        {name: one.pair for name, one in stored.items()},
        layouts[-1] if layouts else DEFAULT_LAYOUT,
        sides[-1] if sides else USUAL_SIDE,
        recentre=max(one.recentre for one in stored.values()),
        threads=threads,
    )

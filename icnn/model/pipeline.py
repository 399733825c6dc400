"""Two-stage pipeline: stage 1, patches, stage 2, full label map (Fig. 2)."""

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

#: Inference function of a network: normalised images (n, 3, S, S) float32 -> logits (n, L, S, S).
Predict = Callable[[np.ndarray], np.ndarray]


class Located(NamedTuple):
    """Result of stage 1: centres (n, 6, 2), x and y in image pixels; found (n, 6) bool; labels (n, 64, 64) uint8."""

    centres: np.ndarray
    found: np.ndarray
    labels: np.ndarray


class PatchLogits(NamedTuple):
    """Result of stage 2 on n images, for each of the six patches: top-left corners (n, 2), logits (n, L, S, S)."""

    origins: list[np.ndarray]
    logits: list[np.ndarray]


USUAL_SIDE = 256.0  # pixels, of the photographs of Smith et al.; for weights without a side
#: Relative face sizes that are not resampled for stage 2: augmentation covers them, and resampling costs sharpness.
_ABOUT = 0.75, 1.33
_LARGEST = 2048  # upper limit of a photograph's larger side after enlarging, pixels


class Pipeline:
    """The two stages of face parsing.

    Parameters
    ----------
    networks : mapping of name to Predict
        All five networks of `icnn.stages.NETWORKS`.
    pairs : mapping of name to (beta, beta0), optional
        Background modulation of the stage-2 networks; (1, 0) for missing names.
    layout : (6, 2)
        Mean part centres in a stage-1 square of side 1: the fallback for parts that stage 1 does not find.
    side : float
        Larger side of the training photographs, pixels; with `layout` it gives the mean size of a face.
    recentre : float
        Crop a patch again around its part if the part's median is more than this many pixels from the middle of the
        patch, along either axis; 0 disables.
    threads : int, optional
        CPU threads for the work per image outside the networks; default: all cores.
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
        """Run stage 1 (Sec. 3.1): part centres of images (H, W, 3) uint8, which may differ in size."""
        boxes, insides, inputs = zip(*side_by_side(_square, images, self.threads), strict=True)
        logits = self.networks["stage1"](np.stack(inputs))
        labels = np.where(np.stack(insides), logits.argmax(1), 0).astype(np.uint8)
        square = np.stack([part_centres(label) for label in labels])
        usual = self.layout * NETWORKS["stage1"].size - 0.5
        complete = [complete_centres(centres, usual) for centres in square]
        centres = np.stack([box.to_image(points) for box, points in zip(boxes, complete, strict=True)])
        return Located(centres, ~np.isnan(square[..., 0]), labels)

    def label_patches(self, images: Sequence[np.ndarray], centres: np.ndarray) -> PatchLogits:
        """Run stage 2 (Sec. 3.2): logits, before modulation, of the patches around `centres` (n, 6, 2).

        With `recentre`, patches with an off-centre part are cropped again around its median and labelled again.
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
        """Return {image index: new corner (x, y)} for the patches with an off-centre part."""
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
        """Compute the logits (n, L, S, S) of one patch of every image."""
        pairs = zip(images, corners, strict=True)
        return self.networks[patch.network](np.stack([network_input(image, corner, patch) for image, corner in pairs]))

    def labels_of_patch(self, patch: Patch, logits: np.ndarray) -> np.ndarray:
        """Return the ids (n, S, S) uint8 of one patch after modulation, in the patch's (mirrored) orientation."""
        return patch.to_ids()[probabilities(logits, self.pairs[patch.network]).argmax(1)]

    def paste(self, shapes: Sequence[tuple[int, int]], patches: PatchLogits) -> list[np.ndarray]:
        """Return full label maps (H, W) uint8 of ids from the result of `label_patches`, after modulation."""
        return [
            paste_patches(shape, PATCHES, *placed) for shape, placed in zip(shapes, self._placed(patches), strict=True)
        ]

    def joint_probabilities(self, shape: tuple[int, int], patches: PatchLogits) -> list[np.ndarray]:
        """Return the probabilities of all ids, (H, W, 9) float32 for each image of one `shape`, after modulation."""
        return [joint_probabilities(shape, PATCHES, *placed) for placed in self._placed(patches)]

    def _placed(self, patches: PatchLogits) -> Iterator[tuple[list[tuple[int, int]], list[np.ndarray]]]:
        """Yield the corners and the modulated softmax maps of the six patches for each image."""
        p = [
            probabilities(logits, self.pairs[patch.network])
            for patch, logits in zip(PATCHES, patches.logits, strict=True)
        ]
        for n in range(len(p[0])):
            yield [tuple(corners[n]) for corners in patches.origins], [maps[n] for maps in p]

    def label(self, images: Sequence[np.ndarray], centres: np.ndarray) -> list[np.ndarray]:
        """Label images from part centres (n, 6, 2), with stage 2 at the scale of the training data.

        A photograph is resampled before stage 2 if its face is not close in size to the training faces; its labels are
        then resampled back.

        Returns
        -------
        list of (H, W) uint8
            Label maps of ids.
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
                maps[n] = np.rint(shares).argmax(-1).astype(np.uint8)  # rounded: the same ties in a mirror image
        return maps

    def _factor(self, centres: np.ndarray, side: int) -> float:
        """Return the factor to resample a photograph by, from its centres (6, 2); 1 if the face has about mean size."""
        scale = face_scale(centres, self.layout * self.side)
        if _ABOUT[0] < scale < _ABOUT[1]:
            return 1.0
        return min(1 / max(scale, 1e-6), max(1.0, _LARGEST / side))

    def warm_up(self) -> None:
        """Run every network once on an image of zeros, which compiles all missing kernels."""
        for name, predict in self.networks.items():
            size = NETWORKS[name].size
            predict(np.zeros((1, 3, size, size), np.float32))

    def parse(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run both stages on images (H, W, 3) uint8; return label maps (H, W) uint8 of ids."""
        return self.label(images, self.locate(images).centres)


def _square(image: np.ndarray) -> tuple[Letterbox, np.ndarray, np.ndarray]:
    """Return an image's letterbox in the stage-1 square, the mask of the pixels it covers, and the network's input."""
    size = NETWORKS["stage1"].size
    box = Letterbox.of(image.shape[0], image.shape[1], size)
    values, inside = warp(image, box.matrix(), size)
    return box, inside, normalise(values, inside)


def predictor(plan: Plan) -> Predict:
    """Wrap a plan as `Predict`: any number of images, run in batches, with the logits copied to the host."""

    def predict(images: np.ndarray) -> np.ndarray:
        batches = range(0, len(images), plan.batch)
        return np.concatenate([plan.download(plan.forward(images[i : i + plan.batch])) for i in batches])

    return predict


def load_pipeline(folder: str | os.PathLike, backend: str, batch: int, threads: int | None = None) -> Pipeline:
    """Build the pipeline from the weights in RUN/weights, with the settings that its pairs were fitted with.

    Parameters
    ----------
    folder : path
        RUN or RUN/weights.
    backend : str
        Name for `minicnn.kernels.get_backend`.
    batch : int
        Images, or patches, per forward pass.
    threads : int, optional
        CPU threads; default: all cores.

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

"""Two-stage pipeline: stage 1, patches, stage 2, full label map (Fig. 2)."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from icnn.data.face_box import CROP_SIZE, SHORTEST, TYPICAL_LENGTH, Box
from icnn.data.geometry import Letterbox
from icnn.data.pyramid import Pyramid
from icnn.data.resample import normalise, side_by_side, warp
from icnn.model.centres import DEFAULT_LAYOUT, complete_centres, face_scale, part_centres
from icnn.model.face_maps import FaceMaps
from icnn.model.modulation import PLAIN, Pair, probabilities
from icnn.model.patches import joint_probabilities, most_probable, network_input, patch_origin
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


USUAL_SIDE = float(CROP_SIZE)  # pixels, of the photographs of Smith et al.; for weights without a side
#: Relative face sizes that are not resampled for stage 2: augmentation covers them, and resampling costs sharpness.
_ABOUT = 0.75, 1.33
_SMALLEST = SHORTEST / TYPICAL_LENGTH


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

    def crop(self, photographs: Sequence[Pyramid], boxes: Sequence[Box], size: int = CROP_SIZE) -> list[np.ndarray]:
        """Crop faces upright, (size, size, 3) uint8, black outside the photograph; at 256 as large as in training."""

        def cut(n: int) -> np.ndarray:
            matrix = boxes[n].matrix(size, TYPICAL_LENGTH * size / CROP_SIZE)
            return np.rint(photographs[n].crop(matrix, size)[0]).astype(np.uint8)

        return side_by_side(cut, range(len(boxes)), self.threads)

    def label(self, crops: Sequence[np.ndarray], boxes: Sequence[Box], centres: np.ndarray) -> list[FaceMaps]:
        """Run stage 2 on crops (256, 256, 3) of `boxes`, around part centres (n, 6, 2) in their pixels."""
        joint = self.joint_probabilities((CROP_SIZE, CROP_SIZE), self.label_patches(crops, centres))
        return [FaceMaps(box, maps, most_probable(maps)) for box, maps in zip(boxes, joint, strict=True)]

    def joint_probabilities(self, shape: tuple[int, int], patches: PatchLogits) -> list[np.ndarray]:
        """Return the probabilities of all ids, (H, W, 9) float32 for each image of one `shape`, after modulation."""
        p = [
            probabilities(logits, self.pairs[patch.network])
            for patch, logits in zip(PATCHES, patches.logits, strict=True)
        ]
        corners = [[tuple(own[n]) for own in patches.origins] for n in range(len(p[0]))]
        return [joint_probabilities(shape, PATCHES, own, [q[n] for q in p]) for n, own in enumerate(corners)]

    def frame(self, centres: np.ndarray, shape: tuple[int, int]) -> Box:
        """Return the box of a face with part centres (6, 2) in a photograph (H, W).

        A face of about the usual size is not resampled: its crop has whole pixels of the photograph. The crop lies in
        the photograph as far as it can.
        """
        scale = face_scale(centres, self.layout * self.side)
        scale = 1.0 if _ABOUT[0] < scale < _ABOUT[1] else max(scale, _SMALLEST)
        middle = centres.mean(0)
        corner = patch_origin(middle, CROP_SIZE, shape) if scale == 1 else (middle + 0.5) / scale - CROP_SIZE / 2
        room = np.array(shape[::-1]) / scale - CROP_SIZE
        corner = np.clip(corner, np.minimum(room, 0), np.maximum(room, 0))
        x, y = ((corner + CROP_SIZE / 2) * scale - 0.5).tolist()
        return Box(x, y, TYPICAL_LENGTH * scale)

    def label_around(self, images: Sequence[np.ndarray], centres: np.ndarray) -> list[np.ndarray]:
        """Label the face of each image around its part centres (n, 6, 2); return label maps (H, W) uint8 of ids."""
        boxes = [self.frame(points, image.shape[:2]) for points, image in zip(centres, images, strict=True)]
        inside = [box.to_crop(points, CROP_SIZE, TYPICAL_LENGTH) for box, points in zip(boxes, centres, strict=True)]
        crops = self.crop([Pyramid(image) for image in images], boxes)
        maps = []
        for image, face in zip(images, self.label(crops, boxes, np.stack(inside)), strict=True):
            maps.append(np.zeros(image.shape[:2], np.uint8))
            face.draw(image.shape[:2]).paste(maps[-1])
        return maps

    def warm_up(self) -> None:
        """Run every network once on an image of zeros, which compiles all missing kernels."""
        for name, predict in self.networks.items():
            size = NETWORKS[name].size
            predict(np.zeros((1, 3, size, size), np.float32))

    def parse(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run both stages on images (H, W, 3) uint8; return label maps (H, W) uint8 of ids."""
        return self.label_around(images, self.locate(images).centres)


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

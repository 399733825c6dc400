"""Evaluate a pipeline on annotated faces and fit its background modulation (Sec. 4.2) on them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from icnn.classes import PARTS
from icnn.data.folder import Face
from icnn.data.geometry import Letterbox
from icnn.evaluate.metrics import bootstrap, confusion, f_measures
from icnn.model.centres import complete_centres, part_centres
from icnn.model.modulation import PLAIN, RELEASED_STARTS, Fit, Pair, SoftF, fit_modulation, probabilities
from icnn.model.patches import cut_patch, joint_probabilities, most_probable
from icnn.model.pipeline import PatchLogits, Pipeline
from icnn.stages import NETWORKS, PATCHES, STAGE2

#: The two crop conditions: patches centred on stage 1's predictions, or on the true part centres.
CONDITIONS = ("predicted", "ground_truth")

#: Wraps what a loop goes through, to show its progress or to stop it; `iter` does neither.
Track = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass
class Evaluation:
    """Results of an evaluation, per image, under both crop conditions.

    Attributes
    ----------
    names : list of str
    matrices : dict
        Condition -> confusion matrix, (9, 9) int64, of each image at its original size.
    centre_errors : (n, 6) float64
        Distance in image pixels between predicted and true part centres; NaN if the truth lacks the part.
    not_found : (6,) int64
        Number of images in which stage 1 did not find the part and the fallback placed the patch.
    """

    names: list[str] = field(default_factory=list)
    matrices: dict[str, list[np.ndarray]] = field(default_factory=lambda: {key: [] for key in CONDITIONS})
    centre_errors: np.ndarray = field(default_factory=lambda: np.empty((0, len(PATCHES))))
    not_found: np.ndarray = field(default_factory=lambda: np.zeros(len(PATCHES), np.int64))

    @property
    def confusion(self) -> dict[str, np.ndarray]:
        """Condition -> confusion matrix, (9, 9) int64, pooled over images."""
        none = np.zeros((len(PARTS), len(PARTS)), np.int64)
        return {key: np.sum([none, *matrices], axis=0) for key, matrices in self.matrices.items()}

    @property
    def per_image(self) -> dict[str, list[float | None]]:
        """Condition -> ``overall_micro`` of each image."""
        return {key: [f_measures(one)["overall_micro"] for one in found] for key, found in self.matrices.items()}

    def summary(self, split: str) -> dict[str, Any]:
        """Return the contents of evaluation.json: split, number of images and F-measures per crop condition."""
        crops = {key: f_measures(matrix) for key, matrix in self.confusion.items()}
        return {"split": split, "images": len(self.names), "crops": crops}

    def details(self) -> dict[str, Any]:
        """Return the further results that the report shows: confusion, per-image F, intervals and centre errors."""
        centres = {}
        for patch, errors, missing in zip(PATCHES, self.centre_errors.T, self.not_found, strict=True):
            known = errors[~np.isnan(errors)]
            median, p95 = np.percentile(known, (50, 95)).round(2).tolist() if known.size else (None, None)
            centres[patch.name] = {"median": median, "p95": p95, "not_found": int(missing)}
        return {
            "names": self.names,
            "confusion": {key: matrix.tolist() for key, matrix in self.confusion.items()},
            "per_image": self.per_image,
            "intervals": {key: bootstrap(found, np.random.default_rng(0)) for key, found in self.matrices.items()},
            "centres": centres,
        }


def true_centres(labels: np.ndarray, known: np.ndarray, pipeline: Pipeline) -> np.ndarray:
    """Fill in part centres that are missing from the ground truth, as at inference.

    Parameters
    ----------
    labels : (H, W)
        True label map; only its size is used.
    known : (6, 2)
        Part centres of `labels`; NaN where the face lacks the part.
    pipeline : Pipeline
        Supplies the usual layout of a face.
    """
    box = Letterbox.of(labels.shape[0], labels.shape[1], 1)
    return complete_centres(known, box.to_image(pipeline.layout - 0.5))


def evaluate(pipeline: Pipeline, faces: Sequence[Face], batch: int, track: Track = iter) -> Evaluation:
    """Parse all faces, `batch` at a time, under both crop conditions; only stage 2's labels count (Sec. 4.2)."""
    result = Evaluation()
    for start in track(range(0, len(faces), batch)):
        chunk = faces[start : start + batch]
        images = [face.image for face in chunk]
        truths = [face.labels() for face in chunk]
        located = pipeline.locate(images)
        known = np.stack([part_centres(truth) for truth in truths])
        actual = np.stack([true_centres(*pair, pipeline) for pair in zip(truths, known, strict=True)])
        errors = np.linalg.norm(located.centres - known, axis=2)
        result.centre_errors = np.concatenate([result.centre_errors, errors])
        result.not_found += (~located.found).sum(0)
        result.names += [face.name for face in chunk]
        for condition, centres in zip(CONDITIONS, (located.centres, actual), strict=True):
            for truth, prediction in zip(truths, pipeline.label_around(images, centres), strict=True):
                result.matrices[condition].append(confusion(truth, prediction))
    return result


def fit_pairs(
    pipeline: Pipeline, faces: Sequence[Face], batch: int, method: str, track: Track = iter
) -> dict[str, Fit]:
    """Fit (beta, beta0) per stage-2 network on full images with predicted centres; also sets `pipeline.pairs`."""
    truths = [face.labels() for face in faces]
    chunks = []
    for start in track(range(0, len(faces), batch)):
        images = [face.image for face in faces[start : start + batch]]
        chunks.append(pipeline.label_patches(images, pipeline.locate(images).centres))
    patches = PatchLogits(
        [np.concatenate(parts) for parts in zip(*(chunk.origins for chunk in chunks), strict=True)],
        [np.concatenate(parts) for parts in zip(*(chunk.logits for chunk in chunks), strict=True)],
    )
    fits = {}
    for name in track(STAGE2):
        objective = HardF(name, truths, patches)
        soft_f = soft_objective(name, truths, patches)
        fits[name] = fit_modulation(soft_f, objective, method, RELEASED_STARTS.get(name, PLAIN))
    pipeline.pairs = {name: fit.pair for name, fit in fits.items()}
    return fits


def _numbers(network: str) -> list[int]:
    """Return the indices of the `PATCHES` that a network labels."""
    return [number for number, patch in enumerate(PATCHES) if patch.network == network]


class HardF:
    """Objective: pair -> mean F of one network's parts on full images, with only its own patches pasted.

    Parameters
    ----------
    network : str
    truths : sequence of (H, W) uint8
        True label maps (ids).
    patches : PatchLogits
        Stage-2 outputs for the same images.
    """

    def __init__(self, network: str, truths: Sequence[np.ndarray], patches: PatchLogits):
        self._numbers = _numbers(network)
        self._measures = NETWORKS[network].measures
        self._truths = truths
        self._patches = patches

    def __call__(self, pair: Pair) -> float:
        maps = [probabilities(self._patches.logits[number], pair) for number in self._numbers]
        patches = [PATCHES[number] for number in self._numbers]
        matrix = np.zeros((len(PARTS), len(PARTS)), np.int64)
        for n, truth in enumerate(self._truths):
            origins = [tuple(self._patches.origins[number][n]) for number in self._numbers]
            joint = joint_probabilities(truth.shape, patches, origins, [p[n] for p in maps])
            matrix += confusion(truth, most_probable(joint))
        scores = f_measures(matrix)
        known = [f for measure in self._measures if (f := scores[measure]) is not None]
        return float(np.mean(known)) if known else 0.0


def soft_objective(network: str, truths: Sequence[np.ndarray], patches: PatchLogits) -> SoftF:
    """Return the smooth counterpart of `HardF`; a pixel under two overlapping patches counts in both."""
    labels, insides, logits = [], [], []
    total = np.zeros(NETWORKS[network].labels, np.int64)
    for number in _numbers(network):
        patch = PATCHES[number]
        table = patch.to_network_labels()
        for truth, origin in zip(truths, patches.origins[number], strict=True):
            ids, inside = cut_patch(truth[..., None], tuple(origin), patch)
            labels.append(table[ids[..., 0]])
            insides.append(inside)
            total += np.bincount(table[truth].ravel(), minlength=len(total))
        logits.append(patches.logits[number])
    return SoftF(np.concatenate(logits), np.stack(labels), np.stack(insides), total)

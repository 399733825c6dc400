"""``python benchmarks/accuracy_bench.py --data DIR``: robustness of the weights to faces unlike the training data.

The faces of a split are parsed end to end, unchanged and with changes that are typical of other cameras. Geometric
changes apply to image and labels alike. Prints a Markdown table with 95 % intervals from a bootstrap over images.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from measure import existing_folder, positive

from icnn.cli import Signals, run
from icnn.data.augment import Draw
from icnn.data.folder import SPLITS, Face, SmithFolder
from icnn.data.photometric import LUMA, through_jpeg
from icnn.data.resample import warp
from icnn.evaluate.metrics import MEASURES, bootstrap, f_measures
from icnn.evaluate.scoring import Evaluation, evaluate
from icnn.model.centres import part_centres
from icnn.model.pipeline import load_pipeline
from icnn.model.weights import SHIPPED
from icnn.train.run_folder import write_json
from minicnn.kernels import choose_backend

DESCRIPTION = (
    "Parse the faces of a split as they are, and changed as other cameras and settings would, and print the scores."
)
_OFF = 0.2  # shift of the face, as a share of the photograph's side


# ---- changes: each maps a face to a changed face


def _with_image(face: Face, image: np.ndarray) -> Face:
    return Face(face.name, np.concatenate([image, face.maps], axis=2))


def moved(draw: Draw) -> Callable[[Face], Face]:
    """Return a change that warps pixels and labels into a square with the photograph's longer side.

    Parameters
    ----------
    draw : Draw
        Scale, rotation and shift.
    """

    def change(face: Face) -> Face:
        size = max(face.pixels.shape[:2])
        values, inside = warp(face.pixels, draw.matrix(size), size)
        values[~inside, 3] = 255  # pixels from outside the image become background
        return Face(face.name, np.rint(values).astype(np.uint8))

    return change


def shifted(x: float, y: float) -> Callable[[Face], Face]:
    """Return a change that shifts the face by (x, y), as shares of the longer side."""

    def change(face: Face) -> Face:
        side = max(face.pixels.shape[:2])
        return moved(Draw(shift=(x * side, y * side)))(face)

    return change


def grey(face: Face) -> Face:
    luma = np.rint(face.image @ LUMA).astype(np.uint8)
    return _with_image(face, np.repeat(luma[..., None], 3, axis=2))


def jpeg(face: Face) -> Face:
    return _with_image(face, through_jpeg(face.image, 20).astype(np.uint8))


def half(face: Face) -> Face:
    """Halve the resolution by averaging 2 x 2 pixels."""
    height, width = (length // 2 * 2 for length in face.pixels.shape[:2])
    tiles = face.pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    return Face(face.name, np.rint(tiles.mean((1, 3))).astype(np.uint8))


def sunglasses(face: Face) -> Face:
    """Draw dark, almost opaque glasses with a bridge over both eyes; the eyes stay labelled."""
    centres = part_centres(face.labels())
    left, right = centres[1], centres[3]
    if np.isnan([left, right]).any():
        return face
    between = right - left
    distance = np.hypot(*between)
    y, x = np.mgrid[: face.pixels.shape[0], : face.pixels.shape[1]]
    axis = between / distance

    def from_eye(eye: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each pixel's offset from an eye, along the line through the eyes and across it."""
        u, v = x - eye[0], y - eye[1]
        return u * axis[0] + v * axis[1], v * axis[0] - u * axis[1]

    mask = np.zeros(y.shape, np.bool_)
    for eye in (left, right):
        along, across = from_eye(eye)
        mask |= (along / (0.42 * distance)) ** 2 + (across / (0.3 * distance)) ** 2 < 1
    along, across = from_eye(left)
    mask |= (along > 0) & (along < distance) & (np.abs(across + 0.08 * distance) < 0.04 * distance)
    return _with_image(face, np.where(mask[..., None], np.rint(0.1 * face.image + 15), face.image).astype(np.uint8))


def turned(faces: Sequence[Face]) -> list[Face]:
    """Return the quarter of the faces that are most turned, by how far the nose is off the middle of the eyes."""

    def asymmetry(face: Face) -> float:
        centres = part_centres(face.labels())
        left, right = (np.hypot(*(centres[4] - centres[eye])) for eye in (1, 3))
        return abs(left - right) / (left + right)

    known = [face for face in faces if not np.isnan(asymmetry(face))]
    return sorted(known, key=asymmetry, reverse=True)[: max(1, len(faces) // 4)]


#: Name of a condition -> its changes; the results of several changes are pooled.
CONDITIONS: dict[str, tuple[Callable[[Face], Face], ...]] = {
    "as they are": (lambda face: face,),
    "face 20 % smaller": (moved(Draw(scale=0.8)),),
    "face 20 % larger": (moved(Draw(scale=1.2)),),
    "face 20 % off, four ways": tuple(shifted(x, y) for x, y in ((_OFF, 0), (-_OFF, 0), (0, _OFF), (0, -_OFF))),
    "turned by 20° in the plane, both ways": (moved(Draw(rotation=20)), moved(Draw(rotation=-20))),
    "greyscale": (grey,),
    "sunglasses": (sunglasses,),
    "JPEG of quality 20": (jpeg,),
    "half the size": (half,),
}
TURNED = "the most turned quarter"


def row(name: str, faces: Sequence[Face], results: Sequence[Evaluation]) -> dict:
    """Return one table row: the scores of one condition with predicted part centres.

    Parameters
    ----------
    faces : sequence of Face
    results : sequence of Evaluation
        One for each change of the condition.
    """
    matrices = [matrix for result in results for matrix in result.matrices["predicted"]]
    actual = [matrix for result in results for matrix in result.matrices["ground_truth"]]
    return {
        "condition": name,
        "images": len(faces) * len(results),
        "f": f_measures(np.sum(matrices, axis=0)),
        "intervals": bootstrap(matrices, np.random.default_rng(0)),
        "true_centres": f_measures(np.sum(actual, axis=0))["overall_micro"],
        "not_found": int(sum(result.not_found.sum() for result in results)),
        "parts": len(results) * len(faces) * 6,
    }


def format_rows(rows: Sequence[dict]) -> str:
    """Format the rows as a Markdown table."""

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}".lstrip("0")

    head = "condition", *MEASURES, "95 % of micro", "micro, true centres", "parts not found"
    lines = [head, tuple("---" for _ in head)]
    for one in rows:
        low, high = one["intervals"]["overall_micro"] or (None, None)
        scores = [number(one["f"][measure]) for measure in MEASURES]
        interval = f"{number(low)} to {number(high)}"
        missing = f"{one['not_found']} of {one['parts']}"
        lines.append((one["condition"], *scores, interval, number(one["true_centres"]), missing))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = argparse.ArgumentParser(prog="accuracy_bench", description=DESCRIPTION)
    parser.add_argument("--data", type=existing_folder, required=True, metavar="DIR", help="faces, Smith's layout")
    parser.add_argument("--weights", type=Path, default=SHIPPED, metavar="DIR", help="default: the shipped ones")
    parser.add_argument("--split", choices=SPLITS, default="tuning", help="default: tuning")
    parser.add_argument("--only", choices=[*CONDITIONS, TURNED], nargs="+", metavar="NAME", help="some conditions")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N faces")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    parser.add_argument("--backend", default="auto", help="default: auto, the fastest")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")
    options = parser.parse_args(argv)
    with Signals() as signals:
        pipeline = load_pipeline(options.weights, choose_backend(options.backend)[0], 32, options.threads)
        faces = SmithFolder(options.data).load_split(options.split)[: options.limit]
        rows = []
        for name in options.only or [*CONDITIONS, TURNED]:
            chosen = turned(faces) if name == TURNED else faces
            changes = CONDITIONS.get(name, CONDITIONS["as they are"])
            track = signals.tracked("evaluate")
            results = [evaluate(pipeline, [change(face) for face in chosen], 32, track) for change in changes]
            rows.append(row(name, chosen, results))
    print(format_rows(rows))
    if options.json:
        write_json(options.json, {"split": options.split, "rows": rows})
    return 0


if __name__ == "__main__":
    run(main, "accuracy_bench")

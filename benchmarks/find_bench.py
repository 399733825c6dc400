"""``python benchmarks/find_bench.py --data DIR``: how many annotated faces the finder finds, and how fast."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from measure import machine, result_file, write_figures

from icnn.cli import Parser, existing_folder, positive, progress, run, text_table
from icnn.data.face_box import Box
from icnn.data.geometry import affine
from icnn.data.images import read_image
from icnn.data.pyramid import Pyramid
from icnn.data.resample import warp
from icnn.parse.finder import Finder
from icnn.parse.parser import FaceParser
from icnn.parse.search import overlap

DESCRIPTION = (
    "Find faces in annotated photographs, as they are and turned. DIR has images/ and faces.json: the name of each "
    "photograph -> its face's box, (x, y, width, height) in pixels, or a list of such boxes. A face is found if a box "
    "overlaps it by an IoU of .4; a box is on nothing if it overlaps no face by .3."
)
SCORES = (0.6, 0.8, 0.9, 0.95, 0.98)
FOUND = 0.4  # IoU from which on an annotated face counts as found
NOTHING = 0.3  # largest IoU with an annotated face up to which a box counts as on nothing
ANGLES = (0, 45, 90, 180)


class Case(NamedTuple):
    """Photograph, turned by some angle, with its annotated boxes."""

    image: np.ndarray
    boxes: list[Box]


def box_of(x: float, y: float, width: float, height: float) -> Box:
    return Box(x + width / 2 - 0.5, y + height / 2 - 0.5, (width * height) ** 0.5)


def turn(case: Case, degrees: float) -> Case:
    """Turn a photograph counter-clockwise about its middle, onto a canvas of its diagonal."""
    if not degrees:
        return case
    height, width = case.image.shape[:2]
    side = int(np.hypot(height, width)) + 1
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    linear = np.array([(cosine, -sine), (sine, cosine)])
    middle, centre = np.array([(width - 1) / 2, (height - 1) / 2]), np.full(2, (side - 1) / 2)
    image, _ = warp(case.image, affine(linear, centre, middle), side)
    places = [linear.T @ ((box.x, box.y) - middle) + centre for box in case.boxes]
    boxes = [Box(x, y, box.length) for (x, y), box in zip(places, case.boxes, strict=True)]
    return Case(np.rint(image).astype(np.uint8), boxes)


def score(found: Sequence[list[Box]], cases: Sequence[Case]) -> tuple[float, float, float]:
    """Return the share of faces that are found, of boxes on nothing, and the boxes per photograph."""
    faces = hits = boxes = empty = 0
    for own, case in zip(found, cases, strict=True):
        faces, boxes = faces + len(case.boxes), boxes + len(own)
        hits += sum((overlap(face, own) >= FOUND).any() for face in case.boxes)
        empty += sum((overlap(box, case.boxes) < NOTHING).all() for box in own)
    return hits / max(1, faces), empty / max(1, boxes), boxes / max(1, len(cases))


def row(angle: int, what: str, figures: Sequence[float], times: Sequence[float]) -> list[str]:
    """Return the cells of a row of the table."""
    return [str(angle), what, *(f"{value:.3f}" for value in figures), f"{median(times):.0f}"]


def load(folder: Path) -> list[Case]:
    annotated = json.loads((folder / "faces.json").read_text("utf-8"))
    files = {path.stem: path for path in (folder / "images").iterdir()}
    cases = []
    for name, boxes in annotated.items():
        numbers = np.reshape(boxes, (-1, 4)).tolist()
        cases.append(Case(read_image(files[name]), [box_of(*box) for box in numbers]))
    return cases


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = Parser(prog="python benchmarks/find_bench.py", description=DESCRIPTION)
    parser.add_argument("--data", type=existing_folder, required=True, metavar="DIR", help="annotated photographs")
    parser.add_argument("--smallest", type=float, help="shortest face, pixels (default: 40)", default=40.0)
    parser.add_argument("--angles", type=positive, default=len(ANGLES), help=f"how many of {ANGLES} degrees")
    parser.add_argument("--json", type=result_file, metavar="FILE", help="also write the figures as JSON")
    parser.add_threads()
    options = parser.parse_args(argv)
    finder = Finder(options.threads)
    parser_of_faces = FaceParser(threads=options.threads)
    upright_cases, rows = load(options.data), []
    for angle in ANGLES[: options.angles]:
        cases = [turn(case, angle) for case in upright_cases]
        found, parsed, times, whole_times = [], [], [], []
        for case in progress(cases, f"{angle} degrees"):
            marks = [time.perf_counter()]
            found.append(finder.find(case.image, options.smallest, least=SCORES[0]))
            marks.append(time.perf_counter())
            parsed.append(parser_of_faces.predict([Pyramid(case.image)], detect=True)[0])
            marks.append(time.perf_counter())
            for kind, seconds in zip((times, whole_times), np.diff(marks), strict=True):
                kind.append(1e9 * seconds / case.image[..., 0].size)
        for least in SCORES:
            boxes = [[one.box for one in own if one.score >= least] for own in found]
            rows.append(row(angle, f"finder, score {least}", score(boxes, cases), times))
        boxes = [[one.face.box for one in own] for own in parsed]
        rows.append(row(angle, "FaceParser, detect=True", score(boxes, cases), whole_times))
    heads = ["angle", "by", "found", "on nothing", "boxes", "ms/megapixel"]
    print(machine())
    print(text_table([heads, *rows], 2))
    if options.json:
        write_figures(options.json, machine(), rows=[dict(zip(heads, row, strict=True)) for row in rows])
    return 0


if __name__ == "__main__":
    run(main, "find_bench")

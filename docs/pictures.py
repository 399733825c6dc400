"""Draw the README's picture: ``python docs/pictures.py RUN`` with a run on synthetic faces and icnn installed."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from icnn.pictures import overlay
from icnn.pipeline import load_pipeline
from icnn.synthetic import synthetic_faces

COLUMNS = 7


def main(run: str) -> None:
    """Photograph, parse and truth of the first test faces, one above the other, into docs/faces.jpg."""
    faces = synthetic_faces(COLUMNS, 0, "testing")
    parsed = load_pipeline(run, "numba", COLUMNS).parse([face.image for face in faces])
    rows = [
        [face.image for face in faces],
        [overlay(face.image, labels, 0.7) for face, labels in zip(faces, parsed, strict=True)],
        [overlay(face.image, face.labels(), 0.7) for face in faces],
    ]
    sheet = Image.fromarray(np.vstack([np.hstack(row) for row in rows]))
    small = sheet.resize((sheet.width * 5 // 8, sheet.height * 5 // 8), Image.Resampling.LANCZOS)
    small.save(Path(__file__).parent / "faces.jpg", quality=90)


if __name__ == "__main__":
    main(sys.argv[1])

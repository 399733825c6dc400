"""Draw the README's pictures: ``python docs/pictures.py [RUN]``, with icnn installed.

Of the page in a browser and of what icnn.parse writes, by the shipped weights;
needs Chromium, and Playwright from the extra `test`. With the RUN of a
training on synthetic faces also faces.jpg, of its results.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from icnn.data.overlay import overlay
from icnn.model.pipeline import load_pipeline
from icnn.synthetic.faces import synthetic_faces

HERE = Path(__file__).parent
COLUMNS = 7
SHOWN = 2  # number of the test face that is parsed


def faces_picture(run: str) -> None:
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
    small.save(HERE / "faces.jpg", quality=90)


def photograph(folder: Path) -> Path:
    """A synthetic face as a file."""
    path = folder / "portrait.jpg"
    Image.fromarray(synthetic_faces(SHOWN + 1, 0, "testing")[SHOWN].image).save(path, quality=95)
    return path


def parse_picture(source: Path) -> None:
    """A photograph and the pictures that icnn.parse makes of it, side by side with their names, into docs/parse.jpg."""
    command = [sys.executable, "-m", "icnn.parse", source, "--out", source.parent, "--parts", "lips"]
    subprocess.run(command, check=True)
    names = [source.name, *(f"{source.stem}_{kind}.png" for kind in ("overlay", "labels", "mask"))]
    pictures = [Image.open(source.parent / name).convert("RGB") for name in names]
    width, height = pictures[0].size
    sheet = Image.new("RGB", ((width + 8) * len(pictures) - 8, height + 24), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, picture) in enumerate(zip(names, pictures, strict=True)):
        sheet.paste(picture, (number * (width + 8), 0))
        draw.text((number * (width + 8), height + 4), name, "black", font_size=15)
    sheet.save(HERE / "parse.jpg", quality=88)


def serve_picture(source: Path) -> None:
    """The page of icnn.serve after a photograph was chosen, into docs/serve.jpg."""
    from playwright.sync_api import sync_playwright

    with subprocess.Popen(
        [sys.executable, "-m", "icnn.serve", "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0]
        with sync_playwright() as driver:
            executable = shutil.which("chromium") or shutil.which("chromium-browser")
            with driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"]) as browser:
                page = browser.new_page(viewport={"width": 1000, "height": 950})
                page.goto(address)
                page.set_input_files("#file", source)
                page.wait_for_selector("#result:not([hidden])")
                page.wait_for_timeout(500)
                page.screenshot(path=HERE / "serve.jpg", type="jpeg", quality=85)
        server.terminate()


def main(*run: str) -> None:
    """Draw all that can be drawn."""
    with tempfile.TemporaryDirectory() as folder:
        source = photograph(Path(folder))
        parse_picture(source)
        serve_picture(source)
    for one in run:
        faces_picture(one)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Write datasets in the folder layout that `icnn.data.folder` reads."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from icnn.classes import PARTS, SMITH_FILES
from icnn.data.folder import check_name
from icnn.data.images import mistake
from minicnn.checkpoint import atomic_path


def write_face(root: str | os.PathLike[str], name: str, image: np.ndarray, maps: np.ndarray) -> None:
    """Write images/NAME.jpg and labels/NAME/NAME_lblKK.png below `root`.

    Parameters
    ----------
    root : path-like
        Created if it does not exist.
    name : str
    image : (H, W, 3) uint8
        RGB. Saved as a JPEG of quality 95, so reading it back gives slightly different pixels.
    maps : (H, W, 9) uint8
        Soft maps of ids 0..8. The background is written to 00; 01 and 10 are zero.

    Raises
    ------
    InputError
        If `name` would escape the folder or a file cannot be written.
    ValueError
        If the shapes or dtypes are wrong.
    """
    shapes = (*image.shape[:2], 3), (*image.shape[:2], len(PARTS))
    if (image.shape, maps.shape) != shapes or {image.dtype, maps.dtype} != {np.dtype(np.uint8)}:
        got = f"{image.shape} {image.dtype} and {maps.shape} {maps.dtype}"
        raise ValueError(f"expected image (H, W, 3) and maps (H, W, {len(PARTS)}), both uint8, got {got}")
    root = Path(root)
    check_name(name, str(root))
    folder = root / "labels" / name
    with _writing(root):
        (root / "images").mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(root / "images" / f"{name}.jpg") as path:
            Image.fromarray(np.ascontiguousarray(image)).save(path, "JPEG", quality=95)
        for part, files in enumerate(SMITH_FILES):
            for i, kk in enumerate(files):
                pixels = maps[..., part] if i == 0 else np.zeros(maps.shape[:2], np.uint8)
                with atomic_path(folder / f"{name}_lbl{kk}.png") as path:
                    Image.fromarray(np.ascontiguousarray(pixels)).save(path, "PNG")


def write_split(root: str | os.PathLike[str], split: str, names: Iterable[str]) -> None:
    """Write the list of a split, one "INDEX , NAME" per line, with indices from 1.

    Parameters
    ----------
    root : path-like
        Created if it does not exist.
    split : str
        Name of the list, without ".txt".
    names : iterable of str

    Raises
    ------
    InputError
        If a name would escape the folder or the list cannot be written.
    """
    path = Path(root) / f"{split}.txt"
    lines = []
    for index, name in enumerate(names, 1):
        check_name(name, str(path))
        lines.append(f"{index} , {name}\n")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text("".join(lines), "utf-8", newline="\n")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise mistake(path, "a place to write to", str(error), "check permissions and free space") from error

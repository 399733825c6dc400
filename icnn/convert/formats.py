"""Readers of other labelled face data sets, as downloaded: Helen (194 points), LaPa and CelebAMask-HQ.

A reader lists the faces of a folder as `Source`. Reading a source gives a square
photograph and soft maps in the form that `icnn.data.write_folder.write_face` expects.
"Left" means the left side of the image, even if the source uses the other convention.
Labels refer to the pixels as stored; an EXIF orientation is ignored.
"""

import filecmp
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from icnn.convert.contours import draw_maps, read_lines, read_points
from icnn.data.face_box import Box, Converted, check_length, cut_out
from icnn.data.images import decode, mistake, there, to_rgb
from icnn.data.resample import warp
from icnn.errors import InputError

#: LaPa's label ids -> our class ids: background, skin, eyebrows, eyes, nose, upper lip, inner mouth, lower lip, hair.
LAPA = np.array([0, 0, 1, 3, 2, 4, 5, 6, 7, 8, 0], np.uint8)
LAPA_SPLITS = {"train": "exemplars", "val": "tuning", "test": "testing"}

#: CelebAMask-HQ's masks -> our class ids, in the order in which the data set overlays the masks.
CELEBAMASK = {"l_brow": 1, "r_brow": 3, "l_eye": 2, "r_eye": 4, "nose": 5, "mouth": 7, "u_lip": 6, "l_lip": 8}
CELEBAMASK_SIDE = 512


@dataclass(frozen=True)
class Source:
    """A face of another data set that has not been read yet.

    Attributes
    ----------
    name : str
        Unique within its data set.
    split : {"exemplars", "tuning", "testing"}
    read : callable
        ``read(size, face)`` returns the photograph (size, size, 3) and the soft maps
        (size, size, 9), both uint8. The longer side of the face is `face` pixels.
        Raises InputError if the face cannot be used.
    """

    name: str
    split: str
    read: Callable[[int, int], Converted]


# ---------------------------------------------------------------- Helen, 194 points


def helen194(root: Path) -> list[Source]:
    """List the faces of Helen with its original annotations.

    Annotations are annotation/1.txt and so on; the photographs NAME.jpg may lie anywhere below `root`.
    Names in trainnames.txt are exemplars. Of the sorted names in testnames.txt, the first 230/330 are tuning and the
    others testing. These are the counts of Smith et al., whose own lists differ. Without either file the split is
    80/10/10, and all faces of one photograph are in the same split.

    Raises
    ------
    InputError
        If the folder does not have this layout.
    """
    _need(root / "annotation", "annotation/1.txt, ..., and the photographs NAME.jpg anywhere below")
    files = sorted(_files(root / "annotation", ".txt"), key=lambda path: (len(path.stem), path.stem))
    photographs = defaultdict(list)
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() == ".jpg" and not path.name.startswith("."):
            photographs[path.stem].append(path)
    named = [_photograph_name(path) for path in files]
    split_of = _helen_splits(root, named)
    unique = _unique((path.stem, name) for path, name in zip(files, named, strict=True))
    return [
        Source(new, split_of(name), partial(_read_helen, path, name, photographs.get(name, [])))
        for path, name, new in zip(files, named, unique, strict=True)
    ]


def _photograph_name(path: Path) -> str:
    try:
        return read_lines(path)[0] or path.stem
    except InputError:
        return path.stem  # the error is reported when the face is read


def _helen_splits(root: Path, names: list[str]) -> Callable[[str], str]:
    lists = {}
    for file in ("trainnames", "testnames"):
        if there(root / f"{file}.txt", Path.is_file):
            lists[file] = set(read_lines(root / f"{file}.txt"))
    if not lists:
        return lambda name: _by_number(zlib.crc32(name.rsplit("_", 1)[0].encode()))
    train = lists.get("trainnames", set())
    test = sorted(name for name in set(names) if name in lists.get("testnames", set(names) - train))
    tuning = set(test[: round(len(test) * 230 / 330)])
    testing = set(test) - tuning
    return lambda name: "testing" if name in testing else "tuning" if name in tuning else "exemplars"


def _read_helen(path: Path, name: str, photographs: list[Path], size: int, face: int) -> Converted:
    points = read_points(path)
    if not photographs:
        raise mistake(path, f"a photograph {name}.jpg below SOURCE", "none", "unpack all of Helen there")
    first, *others = photographs
    for other in others:
        if not filecmp.cmp(first, other, shallow=False):
            raise mistake(other, f"one photograph of that name, as {first} is", "another", "remove one of them")
    image = _stored_rgb(first)
    low, high = points.min(0), points.max(0)
    x, y = (low + high) / 2
    box = Box(x, y, max(high - low))
    if not (0 <= x < image.shape[1] and 0 <= y < image.shape[0]):
        expected, got = f"points on {first}, {image.shape[1]} x {image.shape[0]}", f"points around ({x:.0f}, {y:.0f})"
        raise mistake(path, expected, got, "check that it is the photograph's annotation")
    check_length(box, path)
    values, _ = warp(image, box.matrix(size, face), size)
    return np.rint(values).astype(np.uint8), draw_maps(box.to_crop(points, size, face), size)


# ---------------------------------------------------------------- LaPa


def lapa(root: Path) -> list[Source]:
    """List the faces of LaPa: train, val and test, each with images/NAME.jpg and labels/NAME.png.

    Raises
    ------
    InputError
        If the folder does not have this layout.
    """
    layout = "train, val and test with images/NAME.jpg and labels/NAME.png in each"
    folders = [folder for folder in LAPA_SPLITS if there(root / folder, Path.is_dir)]
    if not folders:
        raise mistake(root, layout, "none of the three", "give the folder that holds them")
    images = []
    for folder in folders:
        _need(root / folder / "images", layout)
        _need(root / folder / "labels", layout)
        images += ((folder, path) for path in _files(root / folder / "images", ".jpg"))
    unique = _unique((folder, path.stem) for folder, path in images)
    return [
        Source(name, LAPA_SPLITS[folder], partial(_read_lapa, path, root / folder / "labels" / f"{path.stem}.png"))
        for name, (folder, path) in zip(unique, images, strict=True)
    ]


def _read_lapa(image_path: Path, label_path: Path, size: int, face: int) -> Converted:
    image = _stored_rgb(image_path)
    labels = decode(label_path)[0]
    if labels.mode not in ("L", "P"):
        hint = "download it again"
        raise mistake(label_path, "a label image of 8-bit ids", f"mode {labels.mode}", hint)
    _check_size(label_path, labels, image.shape[1], image.shape[0])
    ids = np.asarray(labels)
    if ids.max() >= len(LAPA):
        raise mistake(label_path, f"label ids 0 to {len(LAPA) - 1}", f"{ids.max()}", "download it again")
    return cut_out(image, LAPA[ids], size, face, label_path)


# ---------------------------------------------------------------- CelebAMask-HQ


def celebamask(root: Path) -> list[Source]:
    """List the faces of CelebAMask-HQ: CelebA-HQ-img/N.jpg, with masks in CelebAMask-HQ-mask-anno.

    If CelebA-HQ-to-CelebA-mapping.txt exists, the splits are CelebA's own; otherwise 80/10/10 by the last digit of N.

    Raises
    ------
    InputError
        If the folder does not have this layout, or the mapping lacks a photograph.
    """
    masks, layout = root / "CelebAMask-HQ-mask-anno", "CelebA-HQ-img/N.jpg and CelebAMask-HQ-mask-anno/K/NNNNN_PART.png"
    _need(root / "CelebA-HQ-img", layout)
    _need(masks, layout)
    images = [path for path in _files(root / "CelebA-HQ-img", ".jpg") if path.stem.isdecimal()]
    mapping = root / "CelebA-HQ-to-CelebA-mapping.txt"
    originals = _read_mapping(mapping) if there(mapping, Path.is_file) else None
    sources = []
    for path in sorted(images, key=lambda path: int(path.stem)):
        number = int(path.stem)
        if originals is not None and number not in originals:
            raise mistake(mapping, f"a line for {path.name}", "none", "download it again, or remove it")
        split = _by_number(number) if originals is None else _celeba_split(originals[number])
        sources.append(Source(path.stem, split, partial(_read_celebamask, path, masks, number)))
    return sources


def _read_mapping(path: Path) -> dict[int, int]:
    """Read the mapping from image numbers in CelebA-HQ to numbers in CelebA."""
    originals = {}
    for count, line in enumerate(read_lines(path), 1):
        fields = line.split()
        if not fields or (count == 1 and not fields[0].isdecimal()):
            continue  # an empty line, or the header
        if len(fields) < 2 or not (fields[0].isdecimal() and fields[1].isdecimal()):
            raise mistake(f"{path} line {count}", '"idx orig_idx orig_file"', repr(line), "download it again")
        originals[int(fields[0])] = int(fields[1])
    return originals


def _celeba_split(original: int) -> str:
    return "testing" if original >= 182638 else "tuning" if original >= 162771 else "exemplars"


def _read_celebamask(image_path: Path, masks: Path, number: int, size: int, face: int) -> Converted:
    image = _stored_rgb(image_path)
    height, width = image.shape[:2]
    if width != height or width % CELEBAMASK_SIDE:
        expected, got = "1024 x 1024 pixels, or another multiple of the masks' 512", f"{width} x {height}"
        raise mistake(image_path, expected, got, "download it again")
    ids = np.zeros((CELEBAMASK_SIDE, CELEBAMASK_SIDE), np.uint8)
    stem = masks / str(number // 2000) / f"{number:05d}"
    for part, label in CELEBAMASK.items():
        path = Path(f"{stem}_{part}.png")
        if there(path, Path.exists):  # no file: the part is not visible
            mask = decode(path)[0]
            _check_size(path, mask, CELEBAMASK_SIDE, CELEBAMASK_SIDE)
            ids[to_rgb(mask, path)[..., 0] > 127] = label
    factor = width // CELEBAMASK_SIDE
    ids = ids.repeat(factor, axis=0).repeat(factor, axis=1)
    return cut_out(image, ids, size, face, f"{stem}_*.png")


# ---------------------------------------------------------------- files


#: EXIF orientation -> the transposition that restores the stored pixel order after `decode` has applied it.
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def _stored_rgb(path: Path) -> np.ndarray:
    """Return a photograph (H, W, 3) uint8 in its stored orientation, in which it was labelled."""
    image, orientation = decode(path)
    if orientation != 1:
        image = image.transpose(_TURNED[orientation])
    return to_rgb(image, path)


def _files(folder: Path, suffix: str) -> list[Path]:
    """Return a folder's files with this suffix, sorted; skip hidden files, which some archives contain."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == suffix and not path.name.startswith("."))


def _need(folder: Path, layout: str) -> None:
    if not there(folder, Path.is_dir):
        raise mistake(folder, f"a folder, in the layout {layout}", "none", "give the folder that holds it as SOURCE")


def _check_size(path: Path, image: Image.Image, width: int, height: int) -> None:
    if image.size != (width, height):
        hint = "download it and its photograph again"
        raise mistake(path, f"{width} x {height} pixels", f"{image.width} x {image.height}", hint)


def _by_number(number: int) -> str:
    """Return the split by last digit: 80 % exemplars, 10 % tuning, 10 % testing."""
    return {8: "tuning", 9: "testing"}.get(number % 10, "exemplars")


def _unique(faces: Iterable[tuple[str, str]]) -> list[str]:
    """Return a unique name per (folder, name); names equal up to case are prefixed with their folder."""
    faces = list(faces)
    count = Counter(name.casefold() for _, name in faces)
    taken = {name for name, times in count.items() if times == 1}
    names = []
    for folder, name in faces:
        if count[name.casefold()] > 1:
            name = f"{folder}_{name}"
            while name.casefold() in taken:
                name += "_"
            taken.add(name.casefold())
        names.append(name)
    return names


#: Name of a data set -> function that lists its faces.
FORMATS: dict[str, Callable[[Path], list[Source]]] = {"helen194": helen194, "lapa": lapa, "celebamask": celebamask}

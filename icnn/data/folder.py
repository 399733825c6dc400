"""Datasets of labelled faces in the folder layout of Smith et al. (CVPR 2013).

    images/NAME.jpg (or .jpeg, .png)    labels/NAME/NAME_lblKK.png, KK = 00..10: 8-bit soft maps
    exemplars.txt  tuning.txt  testing.txt: one "INDEX , NAME" per line

`SmithFolder` reads both the original SmithCVPR2013_dataset_resized and folders
written by `icnn.data.write_folder`.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np

from icnn.classes import MIRRORED, PARTS, SMITH_FILES
from icnn.data.images import decode, mistake, there, to_grey, to_rgb
from icnn.errors import InputError
from minicnn.kernels.host import cores

SPLITS = ("exemplars", "tuning", "testing")
SUFFIXES = (".jpg", ".jpeg", ".png")


class DatasetWarning(UserWarning):
    """Warning about a dataset that can be read but probably contains a mistake."""


@dataclass(frozen=True, eq=False)  # a generated eq would compare arrays, whose truth value is ambiguous
class Face:
    """Photograph and the soft maps of its parts.

    Parameters
    ----------
    name : str
    pixels : (H, W, 12) uint8, C-contiguous
        RGB, then the soft maps of ids 0..8, which sum to about 255. They share
        one array so that one warp transforms photograph and labels alike.
    """

    name: str
    pixels: np.ndarray

    @property
    def image(self) -> np.ndarray:
        """Photograph as RGB, (H, W, 3) uint8; a view of `pixels`."""
        return self.pixels[..., :3]

    @property
    def maps(self) -> np.ndarray:
        """Soft maps of ids 0..8, (H, W, 9) uint8; a view of `pixels`."""
        return self.pixels[..., 3:]

    @property
    def nbytes(self) -> int:
        """Size of `pixels` in bytes."""
        return self.pixels.nbytes

    def labels(self) -> np.ndarray:
        """Return the id with the largest soft map at each pixel, (H, W) uint8; ties go to the lower id."""
        return self.maps.argmax(axis=-1).astype(np.uint8)


class SmithFolder:
    """Dataset in the folder layout of Smith et al.

    Parameters
    ----------
    root : path-like
        The folder that contains images/, labels/ and the split lists.

    Raises
    ------
    InputError
        If `root`, images/ or labels/ is not a directory. Split lists are not
        read until a method needs them.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root)
        for folder in (self.root, self.root / "images", self.root / "labels"):
            if not there(folder, Path.is_dir):
                got = "something else" if there(folder, Path.exists) else "nothing"
                hint = "give the folder that holds images/, labels/ and the split lists"
                raise mistake(folder, "a directory", got, hint)

    def names(self, split: str) -> list[str]:
        """Return the names of the faces of a split, in the order of its list.

        Parameters
        ----------
        split : {"exemplars", "tuning", "testing"}

        Returns
        -------
        list of str

        Raises
        ------
        InputError
            If the list is missing or empty, one of its lines is malformed or
            repeats a name, or an image or label folder is missing.
        """
        entries = self._entries(split)
        for name, line in entries.items():
            image, labels = self.root / "images" / f"{name}.jpg", self.root / "labels" / name
            for path, present in (image, self._image(name)), (labels, there(labels, Path.is_dir)):
                if not present:
                    hint = f"add it, or remove {name!r} from the list"
                    raise mistake(self._list(split, line), str(path), "no such file or folder", hint)
        return list(entries)

    def load(self, name: str) -> Face:
        """Read one face.

        Parameters
        ----------
        name : str

        Returns
        -------
        Face

        Raises
        ------
        InputError
            If the image or one of the label maps 00 and 02..09 is missing or
            cannot be decoded, or a map is not single-channel or differs from
            the image in size.
        """
        check_name(name, str(self.root))
        path = self._image(name)
        if path is None:
            expected = f"an image ending in {', '.join(SUFFIXES)}"
            raise mistake(self.root / "images" / f"{name}.jpg", expected, "no such file", "add it")
        photograph, orientation = decode(path)
        image = to_rgb(photograph, path)
        labels = self.root / "labels" / name
        files = [[labels / f"{name}_lbl{kk}.png" for kk in kks] for kks in SMITH_FILES]
        # The first file of each id is required; skin (01) and hair (10), added to the background, are optional.
        for file, kk in sorted((paths[0], kks[0]) for paths, kks in zip(files, SMITH_FILES, strict=True)):
            if not there(file, Path.is_file):
                hint = "add it; a part that is absent needs a map of zeros"
                raise mistake(file, f"the label map {kk} of {name}", "no such file", hint)
        pixels = np.empty((*image.shape[:2], 3 + len(SMITH_FILES)), np.uint8)
        pixels[..., :3] = image
        for part, (first, *others) in enumerate(files):
            total = _read_map(first, image, path, orientation)
            for file in others:
                if there(file, Path.is_file):
                    # uint16, because resized soft maps may sum to more than 255
                    both = total.astype(np.uint16) + _read_map(file, image, path, orientation)
                    total = np.minimum(both, 255).astype(np.uint8)
            pixels[..., 3 + part] = total
        return Face(name, pixels)

    def load_split(
        self,
        split: str,
        limit_bytes: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> list[Face]:
        """Decode all faces of a split into memory.

        Parameters
        ----------
        split : {"exemplars", "tuning", "testing"}
        limit_bytes : int, optional
            Largest total size of the decoded pixels, in bytes.
        progress : callable, optional
            Called as progress(done, total) after each face, in the calling thread.

        Returns
        -------
        list of Face

        Raises
        ------
        InputError
            As in `names` and `load`, or if `limit_bytes` is exceeded.

        Warns
        -----
        DatasetWarning
            If a name also occurs in another split, a part is absent from every
            face, or a left part lies right of its counterpart on average.
        """
        names = self.names(split)
        faces, centres, held = [], [], 0
        pool = ThreadPoolExecutor(min(4, cores()))
        try:
            for face, centre in pool.map(self._load_and_locate, names):
                faces.append(face)
                centres.append(centre)
                held += face.nbytes
                if limit_bytes is not None and held > limit_bytes:
                    got = f"about {held * len(names) // len(faces):,} for {len(names)} faces"
                    limit, hint = f"at most {limit_bytes:,} bytes of pixels", "use fewer or smaller faces"
                    raise mistake(self._list(split), limit, got, hint)
                if progress is not None:
                    progress(len(faces), len(names))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, do not wait for the remaining faces
        for message in (*self._shared(split), *self._suspicions(split, np.array(centres))):
            warnings.warn(message, DatasetWarning, stacklevel=2)
        return faces

    def _list(self, split: str, line: int | None = None) -> str:
        return f"{self.root / split}.txt" + (f" line {line}" if line else "")

    def _image(self, name: str) -> Path | None:
        paths = (self.root / "images" / (name + suffix) for suffix in SUFFIXES)
        return next((path for path in paths if there(path, Path.is_file)), None)

    def _entries(self, split: str) -> dict[str, int]:
        """Parse a split list to name -> line number, without checking the images."""
        if split not in SPLITS:
            raise mistake(str(self.root), f"a split of {', '.join(SPLITS)}", repr(split), "choose one of them")
        path = Path(self._list(split))
        try:
            text = path.read_text("utf-8-sig")  # universal newlines, byte-order mark dropped
        except FileNotFoundError as error:
            hint = 'list the names, one "INDEX , NAME" a line'
            raise mistake(path, f"the list of the split {split}", "no such file", hint) from error
        except (OSError, UnicodeDecodeError) as error:
            hint = "check its permissions and save it as UTF-8"
            raise mistake(path, "a text file in UTF-8", str(error), hint) from error
        entries: dict[str, int] = {}
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            where = self._list(split, number)
            index, comma, name = (part.strip() for part in line.partition(","))
            if not (comma and name and index.isdecimal()):
                raise mistake(where, '"INDEX , NAME"', repr(line), 'write it like "1 , 100032540_1"')
            check_name(name, where)
            if name in entries:
                got = f"{name!r} on line {entries[name]} and again on line {number}"
                raise mistake(where, "every name once", got, "remove one of the two lines")
            entries[name] = number
        if not entries:
            raise mistake(path, "at least one name", "an empty list", 'add "INDEX , NAME" lines')
        return entries

    def _load_and_locate(self, name: str) -> tuple[Face, np.ndarray]:
        """Read a face and the mean x of each part in image widths, (9,) float64, NaN if absent."""
        face = self.load(name)
        labels = face.labels()
        width = labels.shape[1]
        columns = np.stack([(labels == part).sum(axis=0) for part in range(len(PARTS))])  # (9, W) pixels
        counts = columns.sum(axis=1)
        x = (np.arange(width) + 0.5) / width
        return face, np.where(counts > 0, columns @ x / np.maximum(counts, 1), np.nan)

    def _shared(self, split: str) -> Iterator[str]:
        """Yield a message for each other split that shares names with this one."""
        mine, file = self._entries(split), self._list(split)
        for other in (s for s in SPLITS if s != split):
            with suppress(InputError):  # a missing or broken list is reported when that split is read
                theirs = self._entries(other)
                shared = [name for name in mine if name in theirs]
                if shared:
                    first = f"{shared[0]!r} (lines {mine[shared[0]]} and {theirs[shared[0]]})"
                    got = f"{len(shared)} of {other}.txt, the first {first}"
                    yield f"{file}: expected no face of another split, got {got}; remove them from one"

    def _suspicions(self, split: str, centres: np.ndarray) -> Iterator[str]:
        """Yield a message for each absent part and each swapped pair, from the parts' mean x, (n, 9)."""
        file, among = self._list(split), f"{len(centres)} faces"
        for part in np.flatnonzero(np.isnan(centres).all(axis=0)):
            files = f"*_lbl{SMITH_FILES[part][0]}.png"
            yield f"{file}: expected {PARTS[part]} in some face, got no pixel in {among}; check {files}"
        for left, right in ((i, int(j)) for i, j in enumerate(MIRRORED) if i < j):
            offset = centres[:, left] - centres[:, right]
            offset = offset[~np.isnan(offset)]
            if offset.size and offset.mean() > 0:
                expected = f"{PARTS[left]} left of {PARTS[right]} as seen in the image"
                got = f"{offset.mean():.2f} image widths right of it, on average over {offset.size} faces"
                hint = "check for mirrored images, or labels by the person's own left and right"
                yield f"{file}: expected {expected}, got {got}; {hint}"


def find_helen() -> Path | None:
    """Return the folder of the Helen photographs.

    It is $ICNN_HELEN if set, else shared/data/helen next to the repository if that exists, else None.

    Raises
    ------
    InputError
        If $ICNN_HELEN is set but is not a directory.
    """
    given = os.environ.get("ICNN_HELEN")
    if given:
        if not there(Path(given), Path.is_dir):
            hint = "correct the variable, or unset it to do without the photographs"
            raise mistake(given, "a directory, as $ICNN_HELEN names it", "none there", hint)
        return Path(given)
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "helen"
    return beside if there(beside, Path.is_dir) else None


def check_name(name: str, where: str) -> None:
    """Raise InputError if `name` could leave its folder on any system: both slashes and drive letters count."""
    inside = PureWindowsPath(name).name == name.strip() == name and name not in ("", ".", "..")
    if not (inside and name.isprintable()):
        hint = "use letters, digits, '-' and '_'"
        raise mistake(where, "a name that stays in its folder, without / \\ or ..", repr(name), hint)


def _read_map(path: Path, image: np.ndarray, image_path: Path, orientation: int) -> np.ndarray:
    """Read a soft map, (H, W) uint8, and check that it has the size of its image (H, W, 3)."""
    soft = decode(path)[0]
    height, width = image.shape[:2]
    if soft.size != (width, height):
        size = f"{width} x {height} pixels, the size of {image_path}"
        hint = "make the label map as large as its image"
        if orientation != 1:
            size += " after its EXIF rotation"
            hint = "rotate the label maps likewise, or drop the EXIF orientation if they fit without"
        raise mistake(path, size, f"{soft.width} x {soft.height}", hint)
    if soft.mode[0] in "IF":
        return to_grey(soft, path)
    if soft.mode == "L" and not soft.has_transparency_data:
        return np.asarray(soft)
    rgb = to_rgb(soft, path)
    opaque = not soft.has_transparency_data or soft.convert("RGBA").getchannel("A").getextrema() == (255, 255)
    if (rgb != rgb[..., :1]).any() or not opaque:
        got = f"mode {soft.mode} with colours or transparency"
        raise mistake(path, "a greyscale label map", got, "convert it to 8-bit greyscale")
    return rgb[..., 0]

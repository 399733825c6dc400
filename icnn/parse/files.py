"""Enumeration of the photographs to parse and naming of their results, lazily, one folder at a time."""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from icnn.errors import InputError

#: Suffixes of the files in a folder that are treated as photographs.
SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
_RESULTS = ("_labels.png", "_overlay.png", "_mask.png")


class Input(NamedTuple):
    """One photograph and the name of its results: a path relative to --out, without their endings."""

    source: Path
    output: Path

    def belongs_to(self, rank: int, size: int) -> bool:
        """Return True if process `rank` of `size` parses this photograph.

        The choice depends on its path, not on its position in the list: no photograph is skipped if files appear or
        disappear while the processes list a folder at different times.
        """
        return crc32(os.fsencode(self.source)) % size == rank


def list_inputs(paths: Sequence[Path], out: Path) -> Iterator[Input]:
    """Yield each photograph of the inputs once, with a unique name for its results.

    A photograph has a short name, that of its file or its path below the input folder, and a full name, its path below
    the deepest folder common to all inputs. The full name is used if another input has the same short name. Files of
    one folder that differ only in suffix keep it. Links to folders are not followed, which excludes loops, and files
    in `out` are skipped. Memory holds only the inputs and the names of one folder at a time.

    Parameters
    ----------
    paths : sequence of Path
        Files and folders.
    out : Path
        Output folder.

    Raises
    ------
    InputError
        Before the first photograph, if a folder has none. A missing file is only detected when it is read.
    """
    roots, results = {path.resolve(): path for path in paths if path.is_dir()}, out.resolve()
    folders = list(roots.values())
    for folder in folders:
        if next(_walk(folder, {results}), None) is None:
            raise InputError(f"{folder}: expected photographs ({' '.join(sorted(SUFFIXES))}), found none")
    single = {path.parent.resolve() / path.name: path for path in paths if not path.is_dir()}
    files = [path for real, path in single.items() if not _is_found(real, roots, results)]
    common = Path(os.path.commonpath([*(path.absolute() for path in folders), *(_home(path) for path in files)]))

    yield from _named_files(files, folders, common)
    file_keys = {_key(file.name) for file in files}
    for folder in folders:
        others = [other for other in (*folders, common) if other != folder] if len(folders) + len(files) > 1 else []
        for where, names in _walk(folder, {results, *roots}):
            below = where.relative_to(folder)
            taken = _keys(others, below) | (set() if below.parts else file_keys)
            full = where.absolute().relative_to(common)
            for key, group in groupby(names, _key):
                alike = list(group)
                for name in alike:
                    yield _named(where / name, full if key in taken else below, len(alike) > 1)


def _named_files(files: Sequence[Path], folders: Sequence[Path], common: Path) -> Iterator[Input]:
    """Name the inputs that are files themselves."""
    taken, counts = _keys(folders, Path()), Counter(_key(file.name) for file in files)
    alike = Counter((_home(file), _key(file.name)) for file in files)
    for file in files:
        home, key = _home(file), _key(file.name)
        is_unique = counts[key] == 1 and key not in taken
        yield _named(file, Path() if is_unique else home.relative_to(common), alike[home, key] > 1)


def _named(file: Path, folder: Path, keep_suffix: bool) -> Input:
    return Input(file, folder / (file.name if keep_suffix else file.stem))


def _home(file: Path) -> Path:
    return file.absolute().parent


def _key(name: str) -> str:
    """Return the case-folded stem of a file name, because some file systems ignore case."""
    return Path(name).stem.casefold()


def _is_photograph(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not name.endswith(_RESULTS)


def _walk(folder: Path, apart: Collection[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Yield `folder` and its subfolders with photographs, except those in `apart`; names sorted by `_key`."""
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if Path(where, name).resolve() not in apart)
        if found := sorted(filter(_is_photograph, names), key=lambda name: (_key(name), name)):
            yield Path(where), found


def _is_found(real: Path, roots: Collection[Path], out: Path) -> bool:
    """Return True if walking the input folders yields this file; all paths are resolved."""
    in_results = out in real.parents and any(root in out.parents for root in roots)
    return _is_photograph(real.name) and not in_results and any(root in real.parents for root in roots)


def _keys(folders: Sequence[Path], below: Path) -> set[str]:
    """Return the keys of the photographs in subfolder `below` of each folder."""
    places = [folder / below for folder in folders]
    names = (path.name for place in places if place.is_dir() for path in place.iterdir())
    return {_key(name) for name in names if _is_photograph(name)}

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


class Job(NamedTuple):
    """One photograph and the path of its results: relative to --out, without their endings."""

    source: Path
    stem: Path

    def belongs_to(self, rank: int, size: int) -> bool:
        """Return True if process `rank` of `size` parses this photograph.

        The choice depends on its path, not on its position in the list: no photograph is skipped if files appear or
        disappear while the processes list a folder at different times.
        """
        return crc32(os.fsencode(self.source)) % size == rank


def jobs_of(inputs: Sequence[Path], out: Path) -> Iterator[Job]:
    """Yield each photograph of the inputs once, with a unique name for its results.

    Results are named after the file, or after its path relative to the input folder. On collision, names start at
    the deepest folder common to all inputs; files that differ only in suffix keep it. Links to folders are not
    followed, which excludes loops, and files in `out` are skipped. Memory holds only the inputs and the names of one
    folder at a time.

    Parameters
    ----------
    inputs : sequence of Path
        Files and folders.
    out : Path
        Output folder.

    Raises
    ------
    InputError
        Before the first job, if a folder has no photographs. A missing file is only detected when it is read.
    """
    roots, results = {path.resolve(): path for path in inputs if path.is_dir()}, out.resolve()
    folders, apart = list(roots.values()), {results, *roots}
    for folder in folders:
        if next(_walk(folder, {results}), None) is None:
            raise InputError(f"{folder}: expected photographs ({' '.join(sorted(SUFFIXES))}), found none")
    named = {path.parent.resolve() / path.name: path for path in inputs if not path.is_dir()}
    files = [path for real, path in named.items() if not _is_found(real, roots, results)]
    shared = Path(os.path.commonpath([*(path.absolute() for path in folders), *(_home(path) for path in files)]))

    stems = Counter(_key(file.name) for file in files)
    twins = Counter((_home(file), _key(file.name)) for file in files)
    others = _stems(folders, Path())
    for file in files:
        key = _key(file.name)
        stem = Path(file.stem) if stems[key] == 1 and key not in others else _home(file).relative_to(shared) / file.stem
        yield Job(file, stem if twins[_home(file), key] == 1 else stem.with_name(file.name))
    for folder in folders:
        rivals = [other for other in (*folders, shared) if other != folder] if len(folders) + len(files) > 1 else []
        for where, names in _walk(folder, apart):
            below = where.relative_to(folder)
            taken = _stems(rivals, below) | (set() if below.parts else set(stems))
            start = where.absolute().relative_to(shared)
            for key, alike in groupby(names, _key):
                same = list(alike)
                for name in same:
                    stem = (start if key in taken else below) / Path(name).stem
                    yield Job(where / name, stem if len(same) == 1 else stem.with_name(name))


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


def _stems(folders: Sequence[Path], below: Path) -> set[str]:
    """Return the keys of the photographs in subfolder `below` of each folder."""
    places = [folder / below for folder in folders]
    names = (path.name for place in places if place.is_dir() for path in place.iterdir())
    return {_key(name) for name in names if _is_photograph(name)}

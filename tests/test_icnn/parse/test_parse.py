"""icnn.parse: does every photograph get its files, whatever lies beside it, and every mistake its line?"""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from commands import call, refused
from PIL import Image
from stubs import coloured_face, oracle

import icnn.parse.__main__
from icnn.classes import COLOURS, PARTS
from icnn.data.face_box import Box
from icnn.parse.__main__ import chosen_parts
from icnn.parse.files import list_inputs
from icnn.parse.parser import FaceParser
from icnn.parse.search import Candidate

ROOT = Path(__file__).parents[3]
PARSE = ("parse", "--backend", "numpy")
ENDINGS = (".json", "_labels.png", "_overlay.png")


@pytest.fixture(autouse=True)
def oracles(request, monkeypatch):
    """Networks that know the coloured faces, and a finder that does not."""
    monkeypatch.setattr("icnn.parse.parser.load_pipeline", lambda *_: oracle())
    monkeypatch.setattr(FaceParser, "_propose", lambda *_: [])


def photograph(path, **face):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coloured_face(**face).image).save(path, lossless=True)  # the stubs know exact colours
    return path


def results(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def whole(*stems):
    return sorted(stem + ending for stem in stems for ending in ENDINGS)


# ---------------------------------------------------------------- what is written


def test_a_photograph_gets_its_labels_overlay_and_description(tmp_path):
    source = photograph(tmp_path / "one.png")
    assert call(*PARSE, source, "--out", tmp_path / "out") == (0, "", "")
    assert results(tmp_path / "out") == whole("one")
    with Image.open(tmp_path / "out" / "one_labels.png") as image:
        assert image.mode == "P" and image.size == (256, 256)
        labels = np.asarray(image)
        assert image.convert("RGB").getpixel((133, 115)) == tuple(COLOURS[5].tolist())
    assert set(np.unique(labels)) == set(range(9))
    with Image.open(tmp_path / "out" / "one_overlay.png") as image:
        assert image.mode == "RGB" and image.size == (256, 256)
    described = json.loads((tmp_path / "out" / "one.json").read_text())
    assert set(described) == {"image", "size", "faces"}
    assert described["image"] == str(source) and described["size"] == [256, 256]
    (face,) = described["faces"]
    assert len(face["box"]) == 4 and list(face["parts"]) == list(PARTS[1:])
    for part, one in enumerate(face["parts"].values(), 1):
        assert set(one) == {"id", "pixels", "box", "center", "confidence"}
        assert (one["id"], one["pixels"]) == (part, (labels == part).sum())
        x, y, width, height = one["box"]
        assert (labels[y : y + height, x : x + width] == part).sum() == one["pixels"]
        assert 0 < one["confidence"] <= 1


def test_chosen_parts_are_a_mask(tmp_path):
    source = photograph(tmp_path / "one.png")
    assert call(*PARSE, source, "--out", tmp_path, "--parts", "lips,nose")[0] == 0
    labels = np.asarray(Image.open(tmp_path / "one_labels.png"))
    mask = np.asarray(Image.open(tmp_path / "one_mask.png"))
    assert (mask == 255 * np.isin(labels, (5, 6, 8))).all() and mask.any()


def test_a_face_that_is_given_is_parsed_there(tmp_path):
    wide = np.zeros((300, 900, 3), np.uint8)
    wide[20:276, 600:856] = coloured_face().image
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert call(*PARSE, tmp_path / "wide.png", "--out", tmp_path, "--face", "665,85,130,130")[0] == 0
    described = json.loads((tmp_path / "wide.json").read_text())
    assert described["faces"][0]["box"] == [665, 85, 130, 130]
    assert 700 < described["faces"][0]["parts"]["nose"]["center"][0] < 760


def test_detection_is_what_is_asked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        FaceParser, "_propose", lambda _, __, detect: asked.append(detect) or [Candidate(Box(133, 130, 128), 0.9)]
    )
    source = photograph(tmp_path / "one.png")
    assert call(*PARSE, source, "--out", tmp_path, "--detect")[0] == 0
    assert len(json.loads((tmp_path / "one.json").read_text())["faces"]) == 1 and asked == [True]


def test_no_face_is_a_line_and_an_empty_list(tmp_path):
    Image.new("L", (30, 20)).save(tmp_path / "wall.png")
    code, _, err = call(*PARSE, tmp_path / "wall.png", "--out", tmp_path)
    assert code == 0 and err == f"icnn.parse: {tmp_path / 'wall.png'}: no face found\n"
    assert json.loads((tmp_path / "wall.json").read_text())["faces"] == []
    assert not np.asarray(Image.open(tmp_path / "wall_labels.png")).any()


# ---------------------------------------------------------------- folders


def test_a_folder_is_parsed_past_what_is_no_photograph(tmp_path):
    folder = tmp_path / "in"
    for name in ("a.png", "b.BMP", "deep/er/c with blanks.png", "日本.webp"):
        photograph(folder / name)
    (folder / "notes.txt").write_text("no photograph")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    (folder / "deep" / "half.png").write_bytes((folder / "a.png").read_bytes()[:300])
    (folder / "deep" / "loop").symlink_to(folder)
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    code, _, err = call(*PARSE, folder, "--out", tmp_path / "out", "--batch", 2)
    assert code == 2 and "Traceback" not in err
    assert results(tmp_path / "out") == whole("a", "b", "deep/er/c with blanks", "日本")
    lines = err.splitlines()
    assert [any(str(folder / bad) in line for line in lines) for bad in ("empty.jpg", "text.jpg", "deep/half.png")]
    assert len(lines) == 5 and lines[-1] == "icnn.parse: 4 of 8 photographs could not be parsed"


def test_photographs_that_vanish_cost_nothing_else(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        photograph(tmp_path / "in" / f"{name}.png")
    read = icnn.parse.__main__.read_image

    def read_after_a_while(path):
        (tmp_path / "in" / "b.png").unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr("icnn.parse.__main__.read_image", read_after_a_while)
    code, _, err = call(*PARSE, tmp_path / "in", "--out", tmp_path / "out")
    assert code == 2 and "b.png: expected" in err
    assert results(tmp_path / "out") == whole("a", "c")


def test_what_was_done_is_left_out_when_asked(tmp_path):
    sources = [photograph(tmp_path / "in" / f"{name}.png") for name in "abc"]
    out = tmp_path / "out"
    assert call(*PARSE, tmp_path / "in", "--out", out)[0] == 0
    (out / "b.json").unlink()  # a kill before its last result
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    sources[0].write_text("not looked at")
    assert call(*PARSE, tmp_path / "in", "--out", out, "--resume") == (0, "", "")
    written = [path.name for path in out.iterdir() if before.get(path) != path.stat().st_mtime_ns]
    assert sorted(written) == whole("b")
    assert call(*PARSE, tmp_path / "in", "--out", out, "--resume") == (0, "", "")


def test_results_are_not_parsed_again(tmp_path):
    photograph(tmp_path / "one.png")
    for _ in range(2):
        assert call(*PARSE, tmp_path, "--out", tmp_path / "out", "--parts", "all")[0] == 0
        shutil.copytree(tmp_path / "out", tmp_path / "elsewhere", dirs_exist_ok=True)
    assert results(tmp_path / "out") == sorted([*whole("one"), "one_mask.png"])


@pytest.mark.parametrize(
    ("inputs", "stems"),
    [
        (["x/a.png", "x/b.png"], ["a", "b"]),
        (["x", "y/c.png"], ["a", "b", "c"]),
        (["x/a.png", "x/a.png", "x"], ["a", "b"]),
        (["x", "z"], ["b", "x/a", "z/A"]),
        (["x", "z/A.png"], ["b", "x/a", "z/A"]),
        (["x/a.png", "z/A.png"], ["x/a", "z/A"]),
        (["y/d.jpg", "y/d.png", "y/c.png"], ["c", "d.jpg", "d.png"]),
        (["y/d.jpg", "y"], ["c", "d.jpg", "d.png"]),
        (["y"], ["c", "d.jpg", "d.png"]),
        (["."], ["w/x/a", "x/a", "x/b", "y/c", "y/d.jpg", "y/d.png", "z/A"]),
        (["x", "w"], ["a", "b", "w/x/a"]),  # `x/a` is what x's would be called were there another `a`
        (["x", "z", "w"], ["b", "w/x/a", "x/a", "z/A"]),
        (["w", "w/x", "w/../w"], ["a"]),
    ],
)
def test_names_that_would_meet_keep_their_folders(tmp_path, monkeypatch, inputs, stems):
    monkeypatch.chdir(tmp_path)
    for name in ("x/a.png", "x/b.png", "y/c.png", "y/d.jpg", "y/d.png", "z/A.png", "w/x/a.png"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    items = list(list_inputs([Path(path) for path in inputs], Path("out")))
    assert all(item.source.is_file() for item in items)
    assert len({item.source.resolve() for item in items}) == len(items)
    found = [str(item.output) for item in items]
    assert len(set(map(str.casefold, found))) == len(found)
    assert sorted(found) == stems


def test_a_million_photographs_are_not_in_memory(tmp_path, monkeypatch):
    """Names of one folder at a time: 200 folders take no more room than one."""

    def walk(folder):
        for number in range(200):
            yield str(folder / f"{number:03}"), [], [f"{number:03}-{place:03}.jpg" for place in range(100)]

    def most_memory(use):
        tracemalloc.start()
        try:
            assert use(list_inputs([tmp_path], tmp_path / "out")) == 20_000
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    monkeypatch.setattr("os.walk", walk)
    everything = most_memory(lambda items: len(list(items)))
    # some tries: threads of other tests may still end, and kernels be compiled
    assert any(most_memory(lambda items: sum(1 for _ in items)) < everything / 20 for _ in range(10))


def test_each_process_has_its_own_photographs_whatever_comes_and_goes(tmp_path):
    sources = [tmp_path / f"{number}.jpg" for number in range(300)]
    for source in sources:
        source.touch()

    def shares(size):
        return [
            {item.source for item in list_inputs([tmp_path], Path("out")) if item.belongs_to(rank, size)}
            for rank in range(size)
        ]

    before = shares(3)
    assert sum(map(len, before)) == 300 and set().union(*before) == set(sources)
    assert min(map(len, before)) > 70
    sources[0].unlink()
    assert all(now == then - {sources[0]} for now, then in zip(shares(3), before, strict=True))


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--face", "1,2,3"], "x, y, width, height"),
        (["--face", "1,2,3,x"], "X,Y,W,H"),
        (["--face", "900,0,50,50"], "in a photograph of 256 x 256"),
        (["--face", "0,0,99,99", "--detect"], "both"),
        (["--parts", "lips,chin"], "chin"),
        (["--batch", "0"], "at least 1"),
    ],
)
def test_mistakes_are_a_line_and_write_nothing(tmp_path, arguments, words):
    source = photograph(tmp_path / "one.png")
    refused(*PARSE, source, "--out", tmp_path / "out", *arguments, words=words)
    assert not (tmp_path / "out").exists() or results(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_text("text"), "another kind of file"),
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: path.mkdir(), "expected photographs"),
    ],
)
def test_an_input_that_is_none_is_a_line(tmp_path, make, words):
    path = tmp_path / "one.jpg"
    make(path)
    refused(*PARSE, path, "--out", tmp_path / "out", words=words)


def test_a_photograph_beyond_the_limit_is_refused(tmp_path):
    """Of 1,000,001 pixels; the limit ends with the command."""
    path, before = tmp_path / "one.png", Image.MAX_IMAGE_PIXELS
    Image.new("L", (9901, 101)).save(path)
    arguments = *PARSE, path, "--out", tmp_path / "out", "--megapixels"
    refused(*arguments, 1, words=["at most 1000000 pixels", "raise the limit"])
    assert call(*arguments, 2)[0] == 0
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16", "1"])
def test_photographs_of_any_mode_are_parsed(tmp_path, mode):
    image = Image.fromarray(coloured_face().image)
    image = (
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        if mode == "I;16"
        else image.convert(mode)
    )
    path = tmp_path / ("one.tif" if mode == "CMYK" else "one.png")
    image.save(path)
    assert call(*PARSE, path, "--out", tmp_path / "out")[0] == 0
    assert results(tmp_path / "out") == whole("one")


def test_a_folder_that_cannot_be_made_is_a_line(tmp_path):
    source = photograph(tmp_path / "one.png")
    (tmp_path / "file").touch()
    refused(*PARSE, source, "--out", tmp_path / "file" / "out", words="try another --out")


def test_a_mistake_is_a_line_also_where_no_kernel_is_compiled_yet(tmp_path):
    """Compilation, which the command announces, begins when there is a photograph to parse."""
    source = photograph(tmp_path / "one.png")
    (tmp_path / "file").touch()
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "icnn.parse", source, "--backend", "numba", "--out", tmp_path / "file"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    for name in ("a", "b"):
        photograph(tmp_path / "in" / f"{name}.png")

    def full(image, path, *_, **__):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Image.Image, "save", full)
    refused(*PARSE, tmp_path / "in", "--out", tmp_path / "out", words="No space left on device")
    assert results(tmp_path / "out") == []


def test_files_that_may_not_grow_leave_nothing_half_written(tmp_path):
    """A real error of the system's, in a process that may write no file of more than 4,000 bytes."""
    import resource

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8)).save(tmp_path / "noise.png")  # an overlay of 49 kB
    process = subprocess.run(
        [sys.executable, "-m", "icnn.parse", "noise.png", "--backend", "numpy", "--out", "out"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)),
    )  # fmt: skip
    assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr
    assert "File too large" in process.stderr.splitlines()[-1]
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".png" or "overlay" in path.name]


def test_parts_and_groups():
    assert chosen_parts("lips, eyes") == (2, 4, 6, 8)
    assert chosen_parts("left_eyebrow") == (1,)
    assert chosen_parts("all") == tuple(range(1, 9))


# ---------------------------------------------------------------- as a user starts it


def test_the_command_with_the_shipped_weights(tmp_path):
    """In a process of its own, on a synthetic face, which the weights have never seen."""
    from icnn.synthetic.faces import synthetic_faces

    face = synthetic_faces(3, 0, "testing")[2]
    Image.fromarray(np.ascontiguousarray(face.image)).save(tmp_path / "one.png")

    def parse(*arguments):
        command = [sys.executable, "-m", "icnn.parse", str(tmp_path / "one.png"), *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )

    process = parse("--out", tmp_path, "--face", "58,58,140,140")
    assert process.returncode == 0, process.stderr
    assert len(json.loads((tmp_path / "one.json").read_text())["faces"]) == 1
    process = parse("--weights", tmp_path / "nowhere")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert not (tmp_path / "parsed").exists()

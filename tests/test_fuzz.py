"""Does any damaged file, list, setting or upload raise more than the program's own errors, hang, or eat memory?

``ICNN_FUZZ=20000 python -m pytest tests/test_fuzz.py`` tries so many inputs of each kind. They are whole files with
some edits; Hypothesis draws the edits and shrinks what fails to the shortest.
"""

import io
import json
import os
import signal
import struct
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from stubs import oracle

from icnn.config import load_config
from icnn.convert.formats import helen194, lapa
from icnn.data.folder import SmithFolder
from icnn.data.images import photograph_of, read_image
from icnn.data.write_folder import write_face, write_split
from icnn.errors import InputError
from icnn.model.weights import read_network
from icnn.parse.parser import FaceParser
from icnn.report.__main__ import main as report
from icnn.serve.app import make_app
from icnn.synthetic.faces import synthetic_faces
from icnn.train.live import write_progress
from icnn.train.run_folder import Progress, Run
from minicnn import Plan
from minicnn.checkpoint import CheckpointError, load_tensors, save_tensors

pytestmark = pytest.mark.slow

INPUTS = int(os.environ.get("ICNN_FUZZ", "50"))  # of each kind
SECONDS = 60  # for one input; a hang is one that takes longer
MEMORY = 2 << 30  # bytes beside what the tests have before
ROOT = Path(__file__).parents[1]

#: Numbers at which readers stumble, as text and as little- and big-endian bytes.
WORDS = [
    b"", b"0", b"-1", b"1e999", b"nan", b"-inf", b"1" * 400, b"1" * 5000, b"\0", b"\xff\xfe", b"\n", b"\r\n", b"..",
    b"../" * 9, b"'", b'"', b"[[", b"[" * 9999, b"{}", b"null", b"true", b"=", b",", b"\xc3\xa9", b"\xed\xa0\x80",
    b"1979-05-27",
    *(struct.pack(order + kind, number) for order, kind, number in product("<>", "Ii", (0, 1, 255, 65535, 2**31 - 1))),
    *(struct.pack(order + "Q", number) for order, number in product("<>", (2**32, 2**63, 2**64 - 1))),
]  # fmt: skip


@st.composite
def edits(draw, most=6):
    """Edits of a file: a place as a share of its length, and what happens there."""
    place = st.floats(0, 1, exclude_max=True)
    kinds = st.one_of(
        st.tuples(st.just("flip"), place, st.integers(1, 255)),
        st.tuples(st.just("word"), place, st.sampled_from(WORDS)),
        st.tuples(st.just("insert"), place, st.one_of(st.sampled_from(WORDS), st.binary(max_size=12))),
        st.tuples(st.just("drop"), place, st.integers(1, 300)),
        st.tuples(st.just("repeat"), place, st.integers(1, 300)),
        st.tuples(st.just("cut"), place, st.none()),
    )
    return draw(st.lists(kinds, min_size=1, max_size=most))


def edited(data: bytes, changes) -> bytes:
    for kind, share, value in changes:
        at = int(share * len(data))
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]
        elif kind == "word":
            data = data[:at] + value + data[at + len(value) :]
        elif kind == "insert":
            data = data[:at] + value + data[at:]
        elif kind == "drop":
            data = data[:at] + data[at + value :]
        elif kind == "repeat":
            data = data[: at + value] + data[at:]
        elif kind == "cut":
            data = data[:at]
    return data


fuzzed = settings(
    max_examples=INPUTS, deadline=None, derandomize=INPUTS <= 50, database=None, print_blob=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(autouse=True)
def bounded():
    """No memory beyond the limit: what asks for more gets a MemoryError, which nobody expects here."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


def survives(call: Callable[[], object], *errors: type[Exception]) -> None:
    """`call` returns or raises one of the program's errors, with one line of text, and in time."""

    def late(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        call()
    except errors as error:
        assert str(error) and "\n" not in str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pictures() -> dict[str, bytes]:
    """Small photographs of every kind that is read."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (20, 24, 3)).astype(np.uint8))
    wide = Image.fromarray(rng.integers(0, 65536, (12, 16)).astype(np.uint16))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    kinds = {
        "jpeg": (rgb, "JPEG", {"exif": exif}),
        "progressive": (rgb, "JPEG", {"progressive": True, "quality": 20}),
        "grey": (rgb.convert("L"), "JPEG", {}),
        "cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "png": (rgb, "PNG", {}),
        "palette": (rgb.quantize(9), "PNG", {"transparency": 3}),
        "wide": (wide, "PNG", {}),
        "bits": (rgb.convert("1"), "PNG", {}),
        "gif": (rgb.quantize(9), "GIF", {"save_all": True, "append_images": [rgb.quantize(5)]}),
        "bmp": (rgb, "BMP", {}),
        "tiff": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "webp": (rgb, "WEBP", {"lossless": True}),
        "ppm": (rgb, "PPM", {}),
    }
    found = {}
    for name, (image, kind, options) in kinds.items():
        file = io.BytesIO()
        image.save(file, kind, **options)
        found[name] = file.getvalue()
    return found


PICTURES = pictures()


@fuzzed
@given(st.sampled_from(sorted(PICTURES)), edits())
def test_photographs(tmp_path_factory, name, changes):
    data = edited(PICTURES[name], changes)
    path = tmp_path_factory.getbasetemp() / "photograph.jpg"
    path.write_bytes(data)
    survives(lambda: read_image(path), InputError)
    survives(lambda: photograph_of(data, "the photograph", 100_000), InputError)


@fuzzed
@given(st.sampled_from(sorted(PICTURES)), edits(), st.sampled_from(["", "?face=1,2,9,9", "?face=nan,0,1,1", "?face=,"]))
def test_uploads(client, name, changes, query):
    def post():
        answer = client.post(f"/parse{query}", data=edited(PICTURES[name], changes), content_type="image/png")
        assert answer.status_code in (200, 400, 413)
        assert set(answer.get_json()) >= ({"labels"} if answer.status_code == 200 else {"error"})

    survives(post)


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr("icnn.parse.parser.load_pipeline", lambda *_: oracle())
    return make_app(FaceParser(backend="numpy"), 200_000, 100_000).test_client()


@pytest.fixture(scope="module")
def smith(tmp_path_factory):
    """A folder of two faces in the layout of Smith et al., small ones."""
    root = tmp_path_factory.mktemp("smith")
    faces = [(face.image[::8, ::8], face.maps[::8, ::8]) for face in synthetic_faces(2, 0, "exemplars")]
    for number, face in enumerate(faces):
        write_face(root, f"face{number}", *face)
    write_split(root, "exemplars", ["face0", "face1"])
    return root, {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@fuzzed
@given(st.data(), edits())
@pytest.mark.filterwarnings("ignore::icnn.data.folder.DatasetWarning")
def test_folders_of_faces(smith, data, changes):
    root, files = smith
    path = data.draw(st.sampled_from([root / "exemplars.txt", *files]), label="file")
    path.write_bytes(edited(files[path], changes))
    try:
        survives(lambda: SmithFolder(root).load_split("exemplars"), InputError)
    finally:
        path.write_bytes(files[path])


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """One face as Helen has it, and one as LaPa does."""
    root = tmp_path_factory.mktemp("foreign")
    for folder in ("annotation", "train/images", "train/labels"):
        (root / folder).mkdir(parents=True)
    angles = np.linspace(0, 2 * np.pi, 194)
    points = "".join(
        f"{12 + 8 * x:.3f} , {10 + 8 * y:.3f}\n" for x, y in zip(np.cos(angles), np.sin(angles), strict=True)
    )
    (root / "annotation" / "1.txt").write_text("face\n" + points)
    for name in ("face.jpg", "train/images/face.jpg"):
        (root / name).write_bytes(PICTURES["grey"])
    labels = np.arange(20 * 24).reshape(20, 24) // 60
    Image.fromarray(labels.astype(np.uint8)).save(root / "train" / "labels" / "face.png")
    return root, {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@fuzzed
@given(st.data(), edits())
def test_other_data_sets(foreign, data, changes):
    root, files = foreign
    path = data.draw(st.sampled_from(list(files)), label="file")
    path.write_bytes(edited(files[path], changes))
    try:
        for reader in (helen194, lapa):
            survives(lambda read=reader: [source.read(64, 40) for source in read(root)], InputError)
    finally:
        path.write_bytes(files[path])


RECIPES = [path.read_bytes() for path in sorted((ROOT / "icnn" / "recipes").glob("*.toml"))]


@fuzzed
@given(st.sampled_from(RECIPES), edits(), st.one_of(st.none(), st.text(max_size=40)))
def test_settings(tmp_path_factory, recipe, changes, assignment):
    path = tmp_path_factory.getbasetemp() / "recipe.toml"
    path.write_bytes(edited(recipe, changes))
    survives(lambda: load_config(path), InputError)
    if assignment is not None:
        survives(lambda: load_config(None, [assignment, f"train.{assignment}", f"train.lr={assignment}"]), InputError)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with the weights of one network, unsealed, so that edits get past the checksum; and as sealed bytes."""
    folder = tmp_path_factory.mktemp("weights")
    plan = Plan(read_network(ROOT / "icnn" / "weights", "nose").graph, 1)
    said = {"layout": str([[0.5, 0.5]] * 6), "side": 256, "recentre": 4, "card": json.dumps({"data": "faces"})}
    plan.save(folder / "nose.safetensors", network="nose", **said)
    plain = (folder / "nose.safetensors").read_bytes()
    save_tensors(
        folder / "small", {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(4, np.int8)}, {"k": "v"}, sealed=True
    )
    return folder, plain, (folder / "small").read_bytes()


@fuzzed
@given(edits(), st.booleans())
def test_weights(stored, changes, head):
    folder, plain, sealed = stored
    # 3 kB of names and shapes are before 1.7 MB of numbers, which may be anything
    cut = 8 + struct.unpack("<Q", plain[:8])[0]
    data = edited(plain[:cut], changes) + plain[cut:] if head else edited(plain, changes)
    (folder / "nose.safetensors").write_bytes(data)
    survives(lambda: read_network(folder, "nose"), InputError)
    (folder / "small").write_bytes(edited(sealed, changes))
    survives(lambda: load_tensors(folder / "small"), CheckpointError)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run as a training leaves it, without having trained."""
    the_run = Run(tmp_path_factory.mktemp("run"))
    the_run.open(load_config())
    for step in (100, 200):
        entry = {"network": "stage1", "step": step, "loss": 0.5, "lr": 0.01, "validation_loss": 0.25}
        the_run.log({**entry, "validation_f": 0.75, "images_per_second": 99.5})
    scores = {"eyebrow": 0.5, "overall_micro": 0.75, "overall_union": None}
    text = json.dumps({"split": "testing", "images": 3, "crops": {"predicted": scores, "ground_truth": scores}})
    (the_run.folder / "evaluation.json").write_text(text)
    the_run.save_state("eye", {"values": np.ones(3)}, Progress(step=3))
    names = "config.toml", "log.jsonl", "evaluation.json", "state/eye.safetensors"
    return the_run, {name: (the_run.folder / name).read_bytes() for name in names}


@fuzzed
@given(st.data(), edits())
def test_runs(trained, data, changes):
    the_run, files = trained
    name = data.draw(st.sampled_from(sorted(files)), label="file")
    path = the_run.folder / name
    path.write_bytes(edited(files[name], changes))
    try:
        with redirect_stdout(io.StringIO()):
            survives(lambda: report([str(the_run.folder), "--html", str(the_run.folder / "r.html")]), InputError)
        survives(lambda: write_progress(the_run, load_config()), InputError)
        survives(lambda: the_run.load_state("eye"), CheckpointError)
    finally:
        path.write_bytes(files[name])

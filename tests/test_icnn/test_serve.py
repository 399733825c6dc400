"""icnn.serve: does the page work as people use it, and does the server stand what comes in?"""

import base64
import contextlib
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from commands import refused
from PIL import Image
from stubs import coloured_face, oracle

from icnn.classes import PARTS
from icnn.parse.parser import FaceParser
from icnn.serve.app import make_app
from icnn.synthetic.faces import synthetic_faces

pytestmark = pytest.mark.slow

pytest.importorskip("flask")
pytest.importorskip("waitress")

ROOT = Path(__file__).parents[2]
REQUESTS = int(os.environ.get("ICNN_REQUESTS", "60"))  # of the load test


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def client(monkeypatch):
    """Flask's own client, with networks that know the coloured faces; 200 kB and 100,000 pixels at most."""
    monkeypatch.setattr("icnn.parse.parser.load_pipeline", lambda *_: oracle())
    monkeypatch.setattr(FaceParser, "_propose", lambda *_: [])
    return make_app(FaceParser(backend="numpy"), 200_000, 100_000).test_client()


def post(client, data, kind="image/png", query=""):
    return client.post(f"/parse{query}", data=data, content_type=kind)


# ---------------------------------------------------------------- answers


def test_a_photograph_is_answered_with_labels_faces_and_their_legend(client):
    answer = post(client, encoded(coloured_face().image))
    assert answer.status_code == 200
    said = answer.get_json()
    assert said["size"] == [256, 256] and len(said["faces"]) == 1
    assert list(said["faces"][0]["parts"]) == list(PARTS[1:])
    head, _, data = said["labels"].partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as labels:
        assert labels.mode == "P" and set(np.unique(np.asarray(labels))) == set(range(9))
    assert [entry["name"] for entry in said["legend"]] == list(PARTS[1:])


def test_a_face_may_be_given(client):
    said = post(client, encoded(coloured_face().image), query="?face=70,62,126,126").get_json()
    assert said["faces"][0]["box"] == [70, 62, 126, 126]


def test_nothing_to_see_is_an_answer(client):
    said = post(client, encoded(np.zeros((1, 1, 3), np.uint8))).get_json()
    assert said["faces"] == [] and said["size"] == [1, 1]


def test_pages_may_be_shown_by_nobody_else(client):
    for path in ("/", "/static/app.js", "/static/style.css"):
        with client.get(path) as answer:
            assert answer.status_code == 200
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert not re.search(rb"https?://", answer.data), "asks for nothing elsewhere"


# ---------------------------------------------------------------- what is refused

FACE = encoded(coloured_face().image)


@pytest.mark.parametrize(
    ("data", "kind", "query", "status", "words"),
    [
        (b"", "image/png", "", 400, "empty file"),
        (b"hello", "image/jpeg", "", 400, "another kind of file"),
        (FACE[:300], "image/png", "", 400, "cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/eps", "", 400, "another kind of file"),
        (FACE, "text/html", "", 415, "text/html"),
        (FACE, "", "", 415, "none"),
        (bytes(200_001), "image/png", "", 413, "at most 0.19"),
        (encoded(np.zeros((400, 300, 3), np.uint8)), "image/png", "", 400, "at most 100000 pixels"),
        (FACE, "image/png", "?face=1,2", 400, "x, y, width, height"),
        (FACE, "image/png", "?face=a,b,c,d", 400, "X,Y,W,H"),
    ],
)
def test_what_is_refused_is_refused_with_a_reason(client, data, kind, query, status, words):
    answer = post(client, data, kind, query)
    assert answer.status_code == status and words in answer.get_json()["error"]
    assert post(client, FACE).status_code == 200, "and the server goes on"


@pytest.mark.parametrize(
    "path", ["/static/../serve.py", "/static/%2e%2e/serve.py", "/static//etc/passwd", "/parse/../serve.py", "/nothing"]
)
def test_paths_lead_nowhere_else(client, path):
    answer = client.get(path, follow_redirects=True)
    assert answer.status_code == 404 and b"import" not in answer.data


def test_a_photograph_that_breaks_the_parser_breaks_nothing_else(client, monkeypatch, capsys):
    def breaks(*_):
        raise RuntimeError("a defect")

    with monkeypatch.context() as patched:
        patched.setattr(FaceParser, "parse_photographs", breaks)
        answer = post(client, FACE)
    assert answer.status_code == 500 and "defect" not in answer.get_json()["error"]
    assert "RuntimeError: a defect" in capsys.readouterr().err
    assert post(client, FACE).status_code == 200


def test_wrong_methods_are_refused(client):
    assert client.get("/parse").status_code == 405
    assert client.post("/").status_code == 405


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--port", "70000"], "65535"), (["--megabytes", "0"], "at least 1"), (["--weights", "nowhere"], "nowhere")],
)
def test_mistakes_are_a_line(arguments, words):
    refused("serve", "--backend", "numpy", *arguments, words=words)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "waitress.server", None)
    refused("serve", words="icnn[serve]")


# ---------------------------------------------------------------- a server in a process of its own


@pytest.fixture(scope="module")
def server():
    """Address and process of a server with the shipped weights, which may not write a byte to any file."""
    command = [sys.executable, "-m", "icnn.serve", "--port", "0", "--megabytes", "2", "--megapixels", "4"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    ) as process:  # fmt: skip
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), process.stderr.read()
        yield line.split()[0], process
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
        assert "Traceback" not in process.stderr.read()


@pytest.fixture(scope="module")
def photograph():
    """A synthetic face that the shipped weights find, as a JPEG."""
    return encoded(synthetic_faces(3, 0, "testing")[2].image, "JPEG", quality=95)


def send(address, data, kind="image/jpeg"):
    request = urllib.request.Request(f"{address}parse", data, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def test_an_upload_is_never_on_a_disk(server):
    """Waitress would put what is larger than half a megabyte into a file, which this server cannot."""
    address, _ = server
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    upload = encoded(noise, "PNG")
    assert 1_400_000 < len(upload) < 2 << 20
    assert send(address, upload, "image/png")["size"] == [800, 600]


def resident(pid):
    """Bytes of memory that a process has in RAM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_many_clients_are_queued_and_do_not_multiply_the_memory(server, photograph):
    """Memory after one request at a time, and after fifty clients at once: one batch, not fifty.

    ``ICNN_REQUESTS=2000`` makes so many; ``-rP`` shows what they took.
    """
    address, process = server
    large = encoded(np.asarray(Image.open(io.BytesIO(photograph)).resize((1800, 1800))), "JPEG")
    expected = send(address, large)
    before = resident(process.pid)
    peak, done = [before], threading.Event()

    def watch():
        while not done.wait(0.02):
            peak.append(resident(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(50) as clients:
            answers = list(clients.map(lambda _: send(address, large), range(REQUESTS)))
    finally:
        done.set()
        watcher.join()
    assert all(answer == expected for answer in answers)
    print(f"{REQUESTS} requests: {before >> 20} MiB after one, {max(peak) >> 20} MiB at most")
    one_photograph = 1800 * 1800 * (3 + 3 + 9 * 4)  # pixels, Pillow's copy, probabilities
    assert max(peak) < 1.2 * (before + one_photograph)


def test_slow_and_broken_uploads_hold_nobody_up(server, photograph):
    address, _ = server
    port = int(address.rsplit(":", 1)[1].strip("/"))
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            slow.sendall(
                b"POST /parse HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 90000\r\n\r\n\xff"
            )
        for text in (
            b"nonsense\r\n\r\n",
            b"POST /parse HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
            b"\x00" * 500 + b"\r\n\r\n",
        ):
            broken = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            broken.sendall(text)
            broken.settimeout(20)
            assert broken.recv(100).startswith(b"HTTP/1.") and b"200" not in text
        assert len(send(address, photograph)["faces"]) == 1


def test_what_is_too_large_is_refused_before_it_is_sent(server):
    """The head is answered: a body of gigabytes is not waited for."""
    address, _ = server
    port = int(address.rsplit(":", 1)[1].strip("/"))
    with socket.create_connection(("127.0.0.1", port)) as upload:
        upload.sendall(
            b"POST /parse HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9999999999\r\n\r\n"
        )
        upload.settimeout(20)
        assert b" 413 " in upload.recv(100)


def test_a_port_that_is_taken_is_a_line(server):
    address, _ = server
    port = address.rsplit(":", 1)[1].strip("/")
    command = [sys.executable, "-m", "icnn.serve", "--port", port, "--backend", "numpy"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 2 and process.stderr.count("\n") == 1


# ---------------------------------------------------------------- the page in a browser


@pytest.fixture
def page(browser, server):
    """The page, on a desk's width, and what it complained of."""
    with browser.new_context(accept_downloads=True, viewport={"width": 1100, "height": 900}) as context:
        page = context.new_page()
        complaints = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: line.type == "error" and complaints.append(line.text))
        page.goto(server[0])
        yield page
        assert [line for line in complaints if "400" not in line] == []


def choose(page, data, name="face.jpg", kind="image/jpeg"):
    page.set_input_files("#file", [{"name": name, "mimeType": kind, "buffer": data}])


def overlay_pixels(page):
    """How many pixels the overlay colours."""
    return page.evaluate(
        "() => { const c = document.getElementById('overlay');"
        " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n }"
    )


def test_the_page_shows_a_photograph_its_parts_and_what_to_download(page, photograph, tmp_path):
    choose(page, photograph)
    page.wait_for_selector("#result:not([hidden])")
    assert "One face in face.jpg" in page.inner_text("#status")
    everything = overlay_pixels(page)
    assert everything > 1000
    assert page.locator("#parts input").count() == 8
    nose = int(page.locator("#parts label", has_text="nose").locator("span").inner_text().split()[0])
    page.get_by_role("checkbox", name="nose").uncheck()
    assert overlay_pixels(page) == everything - nose > 0
    assert "nose" not in page.get_attribute("#overlay", "aria-label")
    with page.expect_download() as download:
        page.click("#mask")
    assert download.value.suggested_filename == "face_mask.png"
    download.value.save_as(tmp_path / "mask.png")
    mask = np.asarray(Image.open(tmp_path / "mask.png").convert("L"))
    assert mask.shape == (256, 256) and (mask == 255).sum() == everything - nose and set(np.unique(mask)) == {0, 255}
    with page.expect_download() as download:
        page.click("#labels")
    download.value.save_as(tmp_path / "labels.png")
    labels = np.asarray(Image.open(tmp_path / "labels.png"))
    assert (labels > 0).sum() == everything and (labels == 5).sum() == nose
    with page.expect_download() as download:
        page.click("#json")
    download.value.save_as(tmp_path / "face.json")
    described = json.loads((tmp_path / "face.json").read_text())
    assert described["image"] == "face.jpg" and described["faces"][0]["parts"]["nose"]["pixels"] == nose


def test_the_page_works_by_keyboard(page, photograph):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    choose(page, photograph)
    page.wait_for_selector("#result:not([hidden])")
    page.focus("#strength")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#shown") == "70 %" and page.evaluate("overlay.style.opacity") == "0.7"
    before = overlay_pixels(page)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert overlay_pixels(page) < before


def test_the_page_takes_a_dropped_photograph(page, photograph):
    page.evaluate(
        "data => { const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));"
        " const moved = new DataTransfer(); moved.items.add(new File([bytes], 'dropped.jpg', { type: 'image/jpeg' }));"
        " document.getElementById('drop').dispatchEvent("
        "   new DragEvent('drop', { dataTransfer: moved, bubbles: true, cancelable: true })) }",
        base64.b64encode(photograph).decode(),
    )
    page.wait_for_selector("#result:not([hidden])")
    assert "dropped.jpg" in page.inner_text("#status")


def test_the_page_says_what_is_wrong_and_goes_on(page, photograph):
    choose(page, b"no picture", "notes.jpg")
    page.wait_for_selector("#status.wrong")
    assert "another kind of file" in page.inner_text("#status") and page.is_hidden("#result")
    choose(page, photograph)
    page.wait_for_selector("#result:not([hidden])")
    assert page.locator("#status.wrong").count() == 0


def test_a_phone_has_room_for_it(browser, server, photograph):
    with browser.new_context(viewport={"width": 360, "height": 740}, device_scale_factor=2) as context:
        page = context.new_page()
        page.goto(server[0])
        choose(page, photograph)
        page.wait_for_selector("#result:not([hidden])")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        if folder := os.environ.get("ICNN_SCREENSHOTS"):
            page.screenshot(path=str(Path(folder) / "phone.png"), full_page=True)
        stage, controls = page.locator("#stage").bounding_box(), page.locator("#controls").bounding_box()
        assert controls["y"] >= stage["y"] + stage["height"], "below the photograph, not beside it"


def test_the_page_looks_as_it_should(page, photograph):
    """For eyes: ICNN_SCREENSHOTS=DIR keeps the picture."""
    choose(page, photograph)
    page.wait_for_selector("#result:not([hidden])")
    time.sleep(0.2)
    picture = page.screenshot(full_page=True)
    if folder := os.environ.get("ICNN_SCREENSHOTS"):
        (Path(folder) / "desk.png").write_bytes(picture)
    photo, overlay = page.locator("#photo").bounding_box(), page.locator("#overlay").bounding_box()
    assert photo == overlay and photo["width"] > 500

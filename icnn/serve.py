"""``python -m icnn.serve``: a page on this computer to drop photographs on, and the interface behind it.

``POST /parse`` takes a photograph as the request's body and answers with JSON. Nothing is written to disk or kept.
"""

import argparse
import base64
import io
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from icnn.command import Parser, StopError, compilation_announced, positive, run
from icnn.errors import InputError
from icnn.palette import COLOURS, PARTS
from icnn.parse import described
from icnn.parser import Detect, FaceParser, box_of, numbers_of
from icnn.photograph import photograph_of
from icnn.pictures import label_image
from icnn.stored import SHIPPED

_TYPES = ("image/", "application/octet-stream")
_THREADS = 4  # that hold a request at a time; one of them parses
_CONNECTIONS = 200  # at most
_RECEIVED = 1 << 30  # bytes of uploads at a time, whose connections are fewer if --megabytes is much
_SLOWEST = 30  # seconds without a byte after which an upload is given up
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = Parser(
        prog="python -m icnn.serve",
        description="Serve a page to parse photographs on (extra serve: Flask and Waitress). Only this computer can "
        "reach it unless --host says otherwise; nothing is stored. Ctrl-C stops it.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=_port, default=8000, metavar="N", help="0: any free one (default: 8000)")
    parser.add_weights(SHIPPED)
    parser.add_backend()
    parser.add_argument("--megabytes", type=positive, default=20, metavar="N", help="largest file (default: 20)")
    parser.add_argument("--megapixels", type=positive, default=40, metavar="N", help="most pixels (default: 40)")
    parser.add_threads()
    options = parser.parse_args(argv)
    try:
        from waitress.server import create_server
    except ImportError:
        raise _missing() from None
    faces = FaceParser(options.weights, options.backend, options.threads)
    app = make_app(faces, _detector(), options.megabytes << 20, options.megapixels * 1_000_000)
    with compilation_announced():
        faces.parse(np.zeros((256, 256, 3), np.uint8), [(58, 58, 140, 140)])  # compiled before the first visitor
    most_bytes = options.megabytes << 20
    server = create_server(
        app,
        host=options.host,
        port=options.port,
        threads=_THREADS,
        connection_limit=max(_THREADS, min(_CONNECTIONS, _RECEIVED // most_bytes)),
        channel_timeout=_SLOWEST,
        cleanup_interval=5,
        max_request_body_size=most_bytes,
        inbuf_overflow=most_bytes + 1,  # no temporary files: nothing is written, and nothing need be writable
        outbuf_overflow=_RECEIVED,
        ident=None,
    )
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"http://{host}:{server.effective_port}/  (Ctrl-C stops)", flush=True)  # pyright: ignore[reportAttributeAccessIssue]
    stopped = _run_until_signal(server)
    raise StopError(stopped)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 65535, got {text!r}")
    return int(text)


def _missing() -> InputError:
    return InputError("expected Flask and Waitress, found none; try pip install 'icnn[serve]'")


def _detector() -> Detect | None:
    """OpenCV's, if it is there."""
    from icnn.detect import detector

    try:
        return detector()
    except InputError:
        return None


def _run_until_signal(server: Any) -> int:
    """Serve until Ctrl-C or SIGTERM; which of them it was."""
    seen = []

    def stop(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise SystemExit  # Waitress ends its threads on it

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    server.run()
    return seen[0] if seen else signal.SIGTERM


def make_app(parser: FaceParser, detect: Detect | None, most_bytes: int, most_pixels: int) -> Any:
    """The Flask application.

    Parameters
    ----------
    parser : FaceParser
    detect : Detect, optional
        Finds several faces; without it such requests are refused.
    most_bytes, most_pixels : int
        Of a photograph.

    Raises
    ------
    InputError
        Without Flask.
    """
    try:
        from flask import Flask, jsonify, request
    except ImportError:
        raise _missing() from None
    from werkzeug.exceptions import HTTPException

    app = Flask("icnn", static_folder=str(Path(__file__).parent / "static"), static_url_path="/static")
    app.config["MAX_CONTENT_LENGTH"] = most_bytes
    app.json.sort_keys = False  # pyright: ignore[reportAttributeAccessIssue]: parts in the order of their ids
    one_at_a_time = threading.Lock()

    @app.get("/")
    def page():
        return app.send_static_file("index.html")

    @app.post("/parse")
    def parse():
        kind = request.mimetype
        if not kind.startswith(_TYPES):
            got = kind or "none"
            return jsonify(error=f"expected a photograph of type image/..., got the content type {got}"), 415
        data = request.get_data(cache=False)
        # Decoded one after the other, too: many visitors wait, they do not multiply the memory.
        with one_at_a_time:
            photograph = photograph_of(data, "the photograph", most_pixels)
            boxes = finder = None
            if face := request.args.get("face"):
                boxes = [[box_of(numbers_of(face), photograph.shape[:2])]]
            elif request.args.get("detect", "") not in ("", "0"):
                if detect is None:
                    raise InputError("expected OpenCV to find several faces, found none; pip install 'icnn[detect]'")
                finder = detect
            (parsed,) = parser.parse_photographs([photograph], boxes, finder)
            return jsonify(answer_of(parsed))

    @app.errorhandler(InputError)
    def mistake(error: InputError):
        return jsonify(error=str(error)), 400

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException):
        text = f"{error.code} {error.name}: {error.description}"
        if error.code == 413:
            text = f"expected a photograph of at most {most_bytes / (1 << 20):g} MB, got a larger one; scale it down"
        return jsonify(error=text), error.code or 500

    @app.errorhandler(Exception)
    def broken(error: Exception):
        print(f"icnn.serve: {type(error).__name__}: {error}", file=sys.stderr)
        return jsonify(error="the server failed on this photograph; what happened is in its log"), 500

    @app.after_request
    def careful(response):
        response.headers.update(_HEADERS)
        return response

    return app


def answer_of(parsed: Any) -> dict[str, Any]:
    """What ``/parse`` answers: size and faces as in NAME.json, the labels as a PNG, and what their colours mean."""
    file = io.BytesIO()
    label_image(parsed.labels).save(file, "PNG", compress_level=3)
    answer = described(Path(), parsed)
    del answer["image"]
    answer["labels"] = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    answer["legend"] = [
        {"id": part, "name": name, "colour": COLOURS[part].tolist()} for part, name in enumerate(PARTS) if part
    ]
    return answer


if __name__ == "__main__":
    run(main, "icnn.serve")

"""Web application: a page for parsing photographs, and ``POST /parse`` for programs."""

import base64
import io
import sys
import threading
from pathlib import Path
from typing import Any

from icnn.classes import COLOURS, PARTS
from icnn.data.images import photograph_of
from icnn.data.overlay import label_image
from icnn.errors import InputError
from icnn.parse.parser import Detect, FaceParser, box_of, numbers_of
from icnn.parse.results import described

_TYPES = ("image/", "application/octet-stream")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def missing() -> InputError:
    """Return the error for a missing web framework or server."""
    return InputError("expected Flask and Waitress, found none; try pip install 'icnn[serve]'")


def make_app(parser: FaceParser, detect: Detect | None, most_bytes: int, most_pixels: int) -> Any:
    """Create the Flask application.

    Parameters
    ----------
    parser : FaceParser
    detect : Detect, optional
        Face detector; if None, requests with ``detect`` are rejected.
    most_bytes, most_pixels : int
        Maximum size of a photograph: of its file, and of the decoded image.

    Returns
    -------
    flask.Flask

    Raises
    ------
    InputError
        If Flask is not installed.
    """
    try:
        from flask import Flask, jsonify, request
    except ImportError:
        raise missing() from None
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
        # Decoding is serialised too, so that many requests do not multiply the memory.
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
    """Build the answer of ``/parse``: size and faces as in NAME.json, labels as a PNG data URI, and a legend."""
    file = io.BytesIO()
    label_image(parsed.labels).save(file, "PNG", compress_level=3)
    answer = described(Path(), parsed)
    del answer["image"]
    answer["labels"] = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    answer["legend"] = [
        {"id": part, "name": name, "colour": COLOURS[part].tolist()} for part, name in enumerate(PARTS) if part
    ]
    return answer

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
from icnn.parse.parser import FaceParser, box_of, numbers_of
from icnn.parse.results import described

_TYPES = ("image/", "application/octet-stream")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


_Answer = tuple[dict[str, Any], int]  # JSON and HTTP status


def missing() -> InputError:
    """Return the error for a missing web framework or server."""
    return InputError("expected Flask and Waitress, found none; try pip install 'icnn[serve]'")


def make_app(parser: FaceParser, most_bytes: int, most_pixels: int) -> Any:
    """Create the Flask application.

    Parameters
    ----------
    parser : FaceParser
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
        from flask import Flask, request
    except ImportError:
        raise missing() from None
    from werkzeug.exceptions import HTTPException

    app = Flask("icnn", static_folder=str(Path(__file__).parent / "static"), static_url_path="/static")
    app.config["MAX_CONTENT_LENGTH"] = most_bytes
    app.json.sort_keys = False  # pyright: ignore[reportAttributeAccessIssue]: parts in the order of their ids
    one_at_a_time = threading.Lock()

    def parse() -> _Answer:
        kind = request.mimetype
        if not kind.startswith(_TYPES):
            got = kind or "none"
            return {"error": f"expected a photograph of type image/..., got the content type {got}"}, 415
        data = request.get_data(cache=False)
        with one_at_a_time:  # decoding too, so that many requests do not multiply the memory
            photograph = photograph_of(data, "the photograph", most_pixels)
            face = request.args.get("face")
            boxes = [[box_of(numbers_of(face), photograph.shape[:2])]] if face else None
            detect = request.args.get("detect", "") not in ("", "0")
            return answer_of(parser.parse_photographs([photograph], boxes, detect)[0]), 200

    app.add_url_rule("/", view_func=lambda: app.send_static_file("index.html"), endpoint="page")
    app.add_url_rule("/parse", view_func=parse, methods=["POST"])
    app.register_error_handler(InputError, lambda error: ({"error": str(error)}, 400))
    app.register_error_handler(HTTPException, lambda error: _refused(error, most_bytes))
    app.register_error_handler(Exception, _failed)
    app.after_request(_with_headers)
    return app


def _refused(error: Any, most_bytes: int) -> _Answer:
    """Answer a request that HTTP's rules refuse (a werkzeug HTTPException)."""
    text = f"{error.code} {error.name}: {error.description}"
    if error.code == 413:
        text = f"expected a photograph of at most {most_bytes / (1 << 20):g} MB, got a larger one; scale it down"
    return {"error": text}, error.code or 500


def _failed(error: Exception) -> _Answer:
    """Answer a request that met an error of this program, and log the error."""
    print(f"icnn.serve: {type(error).__name__}: {error}", file=sys.stderr)
    return {"error": "the server failed on this photograph; what happened is in its log"}, 500


def _with_headers(response: Any) -> Any:
    response.headers.update(_HEADERS)
    return response


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

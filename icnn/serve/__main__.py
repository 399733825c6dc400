"""``python -m icnn.serve``: local web page for parsing photographs, and its HTTP interface.

``POST /parse`` takes a photograph as the request body and returns JSON. Nothing is written to disk or kept.
"""

import argparse
import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any

from icnn.cli import Parser, StopError, compilation_announced, positive, run
from icnn.model.weights import SHIPPED
from icnn.parse.parser import FaceParser
from icnn.serve.app import make_app, missing

_THREADS = 4  # request threads; only one of them parses at a time
_CONNECTIONS = 200  # maximum number of open connections
_RECEIVED = 1 << 30  # bytes of concurrent uploads; a large --megabytes lowers the number of connections
_SLOWEST = 30  # seconds without a byte after which an upload is dropped


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
        raise missing() from None
    faces = FaceParser(options.weights, options.backend, options.threads)
    app = make_app(faces, options.megabytes << 20, options.megapixels * 1_000_000)
    with compilation_announced():
        faces.warm_up()  # compile before the first request
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
        inbuf_overflow=most_bytes + 1,  # uploads stay in memory: no temporary files, no writable folder needed
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


def _run_until_signal(server: Any) -> int:
    """Serve until Ctrl-C or SIGTERM and return the signal number."""
    seen = []

    def stop(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise SystemExit  # Waitress stops its threads on SystemExit

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    server.run()
    return seen[0] if seen else signal.SIGTERM


if __name__ == "__main__":
    run(main, "icnn.serve")

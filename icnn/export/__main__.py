"""``python -m icnn.export``: export one network as an ONNX file."""

from collections.abc import Sequence
from pathlib import Path

from icnn.cli import Parser, run
from icnn.export.writer import OPSET, model_of, onnx_package
from icnn.model.weights import SHIPPED
from icnn.stages import NETWORKS
from minicnn.checkpoint import atomic_path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = Parser(
        prog="python -m icnn.export",
        description="Write one network as ONNX, normalisation and background modulation inside. Inputs: image "
        "(n, 3, S, S) float32 in [0, 255], and inside (n, 1, S, S) bool, false on padding; may be left out. Outputs: "
        "logits and probabilities (n, L, S, S) float32, labels (n, S, S) uint8.",
    )
    parser.add_argument("--onnx", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument("--network", choices=NETWORKS, required=True, help="which of the five")
    parser.add_weights(SHIPPED)
    options = parser.parse_args(argv)
    if not options.onnx.parent.is_dir():
        parser.error(f"argument --onnx: expected a file in a folder that exists, got {options.onnx}")
    onnx = onnx_package()
    model = model_of(options.weights, options.network)
    with atomic_path(options.onnx) as path:
        onnx.save(model, path)
    print(f"{options.onnx}: {options.network}, opset {OPSET}")
    return 0


if __name__ == "__main__":
    run(main, "icnn.export")

"""Entry point of the installed package: ``icnn COMMAND``, the same as ``python -m icnn.COMMAND``."""

import sys
from importlib import import_module

from icnn.cli import run

COMMANDS = {
    "parse": "label the faces of photographs and folders",
    "evaluate": "score weights on faces with labels",
    "train": "train the five networks, on your own data or on synthetic faces",
    "serve": "a page on this computer to parse photographs on",
    "report": "compare runs",
    "export": "write a network as ONNX",
    "convert": "turn other data sets into a folder to train on",
    "synthetic": "write a folder of synthetic faces",
    "exercise": "write the kernels yourself, and find planted bugs",
}


def main() -> None:
    """Run a subcommand; an unknown one prints one line on stderr and exits with code 2."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: icnn COMMAND ...\n")
        print("\n".join(f"  {command:<10} {about}" for command, about in COMMANDS.items()))
        print("\nicnn COMMAND --help says more.")
    elif name == "--version":
        from importlib.metadata import version

        print(f"icnn {version('icnn')}")
    elif name in COMMANDS:
        run(import_module(f"icnn.{name}.__main__").main, f"icnn.{name}", arguments)
    else:
        print(f"icnn: expected a command of {', '.join(COMMANDS)}, got {name!r}; see icnn --help", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main()

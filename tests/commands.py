"""A command run in this process, as its user would see it."""

import io
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module

import pytest

from icnn.cli import run


def call(command, *arguments):
    """Exit code, stdout and stderr of ``python -m icnn.COMMAND``; a traceback is never right.

    Without the lines that tell of compilation: whether there are any depends on what ran before.
    """
    main = import_module(f"icnn.{command}.__main__").main
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        run(main, f"icnn.{command}", list(map(str, arguments)))
    assert "Traceback" not in err.getvalue()
    said = [line for line in err.getvalue().splitlines(True) if not line.startswith(("compiling kernels", "compiled "))]
    return stopped.value.code or 0, out.getvalue(), "".join(said)


def refused(command, *arguments, words):
    """Assert exit code 2 and one line on stderr that has the word, or all of a list of them."""
    code, _, err = call(command, *arguments)
    assert code == 2, err
    assert err.count("\n") == len(err.splitlines()) == 1, err
    for word in words if isinstance(words, list) else [words]:
        assert str(word) in err

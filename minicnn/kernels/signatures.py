"""Signature table: what every kernel computes, its ordered arguments and the rule that their sizes follow.

A kernel has the same arguments in every backend: outputs first, then inputs, then workspace, then sizes.

Shape letters, the same in all kernels::

    N batch size   C input channels   O output channels   K kernel size
    H W rows and columns of a plane       P Q rows and columns of a pooled or upsampled plane
    D channels of a concatenation or of an upsampling with parity maps, D >= C
    E F G channel counts, each equal to y's or 0 (array absent)
    R S rows and columns of a plane of twice the size, R = 2 H and S = 2 W
    L classes   V parameters in the flat buffer

Roles: ``out`` is overwritten. ``accumulate`` is overwritten if the kernel's
last argument `add` is False and added to if it is True. ``in`` is only read.
``workspace`` is the workspace, a flat float array whose content is undefined
before and after the call; the backend's `workspace_size` gives its minimum
length. ``scalar`` is a Python number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel: name, role, shape letters and dtype ("float": float32 or float64)."""

    name: str
    role: str
    shape: tuple[str, ...] = ()
    dtype: str = "float"


@dataclass(frozen=True)
class Signature:
    """A kernel's ordered arguments, its docstring in every backend, and its size rule.

    The size rule takes the sizes by shape letter and the scalars as keyword arguments. It returns an error message
    for sizes and scalars that do not fit together, or "".
    """

    arguments: tuple[Argument, ...]
    doc: str
    size_rule: Callable[..., str]


def _any_size(size: dict[str, int], **_) -> str:
    return ""


def _listed(size: dict[str, int]) -> str:
    return ", ".join(f"{letter}={length}" for letter, length in size.items())


def _pooled(size: dict[str, int], kernel_size: int, stride: int | None = None, padding: int = 0, **_) -> str:
    stride = kernel_size if stride is None else stride
    if not (0 <= padding < kernel_size and stride >= 1 and kernel_size - padding <= stride):
        return f"expected 0 <= padding < kernel_size <= stride + padding, got {kernel_size=}, {stride=}, {padding=}"
    if (size["H"], size["W"]) != (size["P"] * stride, size["Q"] * stride):
        return f"expected planes {stride} times smaller, got {_listed(size)}"
    return ""


def _upsampled(size: dict[str, int], factor: int, **_) -> str:
    if (size["P"], size["Q"]) != (size["H"] * factor, size["W"] * factor):
        return f"expected planes {factor} times larger, got {_listed(size)}"
    return f"expected D of at least C, got {_listed(size)}" if size["D"] < size["C"] else ""


def _placed(size: dict[str, int], offset: int, **_) -> str:
    if not 0 <= offset <= size["D"] - size.get("C", 2):  # there are two parity maps
        return f"expected an offset that leaves room in D, got {offset} and {_listed(size)}"
    return ""


def _linked(size: dict[str, int], **_) -> str:
    if any(size.get(letter, 0) not in (0, size.get("O", size["C"])) for letter in "EFG"):
        return f"expected as many channels as y or none, got {_listed(size)}"
    if size["E"] and (size["H"], size["W"]) != (2 * size["P"], 2 * size["Q"]):
        return f"expected pooled planes of half the size, got {_listed(size)}"
    if size["F"] and (size["R"], size["S"]) != (2 * size["H"], 2 * size["W"]):
        return f"expected doubled planes of twice the size, got {_listed(size)}"
    return ""


def _parse_argument(text: str) -> Argument:
    role, _, rest = text.strip().partition(" ")
    name, _, rest = rest.partition(":")
    shape, _, dtype = rest.partition(":")
    return Argument(name, role, tuple(shape.split(",")) if shape else (), dtype or "float")


def _signature(arguments: str, doc: str, size_rule: Callable[..., str] = _any_size) -> Signature:
    return Signature(tuple(map(_parse_argument, arguments.split("|"))), doc, size_rule)


#: Kernel name -> signature: arguments as "role name:shape:dtype", docstring, size rule.
SIGNATURES: dict[str, Signature] = {
    "conv2d_forward": _signature(
        "out y:N,O,H,W | in x:N,C,H,W | in w:O,C,K,K | in b:O | workspace s",
        "y = x correlated with w (zero padded, stride 1) + b; eq. (1) of the paper without f.",
    ),
    "conv2d_tanh_forward": _signature(
        "out y:N,O,H,W | out pooled:N,E,P,Q | out up:N,F,R,S | in x:N,C,H,W | in w:O,C,K,K | in b:O | workspace s",
        "y = tanh(x correlated with w + b), all of eq. (1); pooled and up as in `interlink_forward`.",
        _linked,
    ),
    "conv2d_backward_data": _signature(
        "accumulate dx:N,C,H,W | in dy:N,O,H,W | in w:O,C,K,K | workspace s | scalar add",
        "dx = dy correlated with w rotated by 180°, input and output channels swapped.",
    ),
    "conv2d_backward_weights": _signature(
        "out dw:O,C,K,K | out db:O | in dy:N,O,H,W | in x:N,C,H,W | workspace s",
        "dw = dy correlated with x over all images; db = dy summed over images and pixels.",
    ),
    "max_pool2d_forward": _signature(
        "out y:N,C,P,Q | in x:N,C,H,W | scalar kernel_size | scalar stride | scalar padding",
        "y[i, j] = max of x[stride i - padding + u, stride j - padding + v], u, v < kernel_size; pixels outside "
        "count as -inf.",
        _pooled,
    ),
    "max_pool2d_backward": _signature(
        "accumulate dx:N,C,H,W | in dy:N,C,P,Q | in x:N,C,H,W | in y:N,C,P,Q | workspace s | scalar kernel_size "
        "| scalar stride | scalar padding | scalar add",
        "dx = dy added at the first maximum, in row-major order, of each window.",
        _pooled,
    ),
    "mean_pool2d_forward": _signature(
        "out y:N,C,P,Q | in x:N,C,H,W | scalar kernel_size",
        "y = mean of the non-overlapping kernel_size x kernel_size tiles of x.",
        _pooled,
    ),
    "mean_pool2d_backward": _signature(
        "accumulate dx:N,C,H,W | in dy:N,C,P,Q | workspace s | scalar kernel_size | scalar add",
        "dx = dy / kernel_size^2 at each pixel of a tile.",
        _pooled,
    ),
    "upsample_nearest2d_forward": _signature(
        "out y:N,D,P,Q | in x:N,C,H,W | scalar factor",
        "y[i, j] = x[i // factor, j // factor], written to the first C channels of y.",
        _upsampled,
    ),
    "upsample_nearest2d_backward": _signature(
        "accumulate dx:N,C,H,W | in dy:N,D,P,Q | scalar factor | scalar add",
        "dx[i, j] = sum of dy over the factor x factor copies of pixel (i, j).",
        _upsampled,
    ),
    "parity_maps": _signature(
        "out y:N,D,H,W | scalar offset",
        "y[:, offset] = column index mod 2; y[:, offset + 1] = row index mod 2.",
        _placed,
    ),
    "concat_forward": _signature(
        "out y:N,D,H,W | in x:N,C,H,W | scalar offset",
        "Copy x (C channels) to channels offset .. offset + C - 1 of y.",
        _placed,
    ),
    "concat_backward": _signature(
        "accumulate dx:N,C,H,W | in dy:N,D,H,W | scalar offset | scalar add",
        "dx = channels offset .. offset + C - 1 of dy.",
        _placed,
    ),
    "tanh_forward": _signature(
        "out y:N,C,H,W | in x:N,C,H,W",
        "y = tanh(x), the activation f of eq. (1).",
    ),
    "tanh_backward": _signature(
        "accumulate dx:N,C,H,W | in dy:N,C,H,W | in y:N,C,H,W | workspace s | scalar add",
        "dx = dy (1 - y^2).",
    ),
    "interlink_forward": _signature(
        "out y:N,C,H,W | out pooled:N,E,P,Q | out up:N,F,R,S | in x:N,C,H,W",
        "y = tanh(x); pooled = y max-pooled 2 x 2; up = y upsampled by 2; pooled or up without channels is skipped.",
        _linked,
    ),
    "interlink_backward": _signature(
        "out dx:N,C,H,W | in dy:N,G,H,W | in dpooled:N,E,P,Q | in dup:N,F,R,S | in y:N,C,H,W | workspace s",
        "dx = (dy + gradients through pooled and up) (1 - y^2); inputs without channels count as 0; dx may be dy.",
        _linked,
    ),
    "softmax_cross_entropy_forward": _signature(
        "out loss: | out total: | out p:N,L,H,W | in z:N,L,H,W | in t:N,H,W:int32 | in weights:N,H,W | workspace s",
        "p = softmax of z over the classes; total = sum of weights; loss = sum of -weights log p[t] / total.",
    ),
    "softmax_cross_entropy_backward": _signature(
        "out dz:N,L,H,W | in p:N,L,H,W | in t:N,H,W:int32 | in weights:N,H,W | in total: | workspace s",
        "dz = weights (p - onehot(t)) / total.",
    ),
    "sgd_update": _signature(
        "out values:V | out velocity:V | in gradients:V | in lr: | workspace s | scalar momentum | scalar nesterov "
        "| scalar weight_decay | scalar shrink",
        "Apply one step of `minicnn.sgd.SGD` to the flat parameter and velocity buffers, in place.",
    ),
}

_Function = TypeVar("_Function", bound=Callable)


def kernel(workspace: Callable[..., int] | None = None) -> Callable[[_Function], _Function]:
    """Give a backend's kernel function its docstring from the table and its workspace rule (decorator).

    Parameters
    ----------
    workspace : callable or None
        Takes the sizes by shape letter as keyword arguments, and returns the least number of workspace elements.
        None if the kernel needs no workspace.
    """

    def mark(function: _Function) -> _Function:
        function.__doc__ = SIGNATURES[function.__name__].doc
        function.workspace = workspace  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return mark

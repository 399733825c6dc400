"""Signature table: the ordered arguments of every kernel, with their roles, shapes and dtypes.

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
``scratch`` is the workspace, a flat float array whose content is undefined
before and after the call; the backend's `scratch_size` gives its minimum
length. ``scalar`` is a Python number.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel: name, role, shape letters and dtype ("float": float32 or float64)."""

    name: str
    role: str
    shape: tuple[str, ...] = ()
    dtype: str = "float"


_TABLE = """
conv2d_forward                 out y:N,O,H,W | in x:N,C,H,W | in w:O,C,K,K | in b:O | scratch s
conv2d_tanh_forward            out y:N,O,H,W | out pooled:N,E,P,Q | out up:N,F,R,S | in x:N,C,H,W | in w:O,C,K,K \
| in b:O | scratch s
conv2d_backward_data           accumulate dx:N,C,H,W | in dy:N,O,H,W | in w:O,C,K,K | scratch s | scalar add
conv2d_backward_weights        out dw:O,C,K,K | out db:O | in dy:N,O,H,W | in x:N,C,H,W | scratch s
max_pool2d_forward             out y:N,C,P,Q | in x:N,C,H,W | scalar window | scalar stride | scalar border
max_pool2d_backward            accumulate dx:N,C,H,W | in dy:N,C,P,Q | in x:N,C,H,W | in y:N,C,P,Q | scratch s \
| scalar window | scalar stride | scalar border | scalar add
mean_pool2d_forward            out y:N,C,P,Q | in x:N,C,H,W | scalar window
mean_pool2d_backward           accumulate dx:N,C,H,W | in dy:N,C,P,Q | scratch s | scalar window | scalar add
upsample_nearest2d_forward     out y:N,D,P,Q | in x:N,C,H,W | scalar factor
upsample_nearest2d_backward    accumulate dx:N,C,H,W | in dy:N,D,P,Q | scalar factor | scalar add
parity_maps                    out y:N,D,H,W | scalar offset
concat_forward                 out y:N,D,H,W | in x:N,C,H,W | scalar offset
concat_backward                accumulate dx:N,C,H,W | in dy:N,D,H,W | scalar offset | scalar add
tanh_forward                   out y:N,C,H,W | in x:N,C,H,W
tanh_backward                  accumulate dx:N,C,H,W | in dy:N,C,H,W | in y:N,C,H,W | scratch s | scalar add
interlink_forward              out y:N,C,H,W | out pooled:N,E,P,Q | out up:N,F,R,S | in x:N,C,H,W
interlink_backward             out dx:N,C,H,W | in dy:N,G,H,W | in dpooled:N,E,P,Q | in dup:N,F,R,S | in y:N,C,H,W \
| scratch s
softmax_cross_entropy_forward  out loss: | out total: | out p:N,L,H,W | in z:N,L,H,W | in t:N,H,W:int32 \
| in weights:N,H,W | scratch s
softmax_cross_entropy_backward out dz:N,L,H,W | in p:N,L,H,W | in t:N,H,W:int32 | in weights:N,H,W | in total: \
| scratch s
sgd_update                     out values:V | out velocity:V | in gradients:V | in lr: | scratch s | scalar momentum \
| scalar nesterov | scalar weight_decay | scalar shrink
"""


def _parse_argument(text: str) -> Argument:
    role, _, rest = text.strip().partition(" ")
    name, _, rest = rest.partition(":")
    shape, _, dtype = rest.partition(":")
    return Argument(name, role, tuple(shape.split(",")) if shape else (), dtype or "float")


#: Kernel name -> ordered arguments, parsed from `_TABLE`, their only definition.
SIGNATURES: dict[str, tuple[Argument, ...]] = {
    line.split()[0]: tuple(_parse_argument(part) for part in line.split(None, 1)[1].split("|"))
    for line in _TABLE.strip().splitlines()
}

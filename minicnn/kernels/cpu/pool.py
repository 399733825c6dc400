"""Backend "numba": pooling, upsampling, concatenation and activation, with one task for each plane.

`compiled.pool` has the loops. What each kernel computes, and the shapes and roles of its arguments:
`minicnn.kernels.signatures`.
"""

from functools import partial

from minicnn.kernels.cpu.kernel import one, one_a_plane_of_second, table_kernel

_kernel = partial(table_kernel, f"{__package__}.compiled.pool")

# ---- pooling, upsampling, concatenation (Sec. 2.2)

max_pool2d_forward = _kernel("max_pool2d_forward", "planes planes int int int")
max_pool2d_backward = _kernel("max_pool2d_backward", "planes planes planes planes flat int int int bool")
mean_pool2d_forward = _kernel("mean_pool2d_forward", "planes planes int")
mean_pool2d_backward = _kernel("mean_pool2d_backward", "planes planes flat int bool")
# y may have two more channels, of parity
upsample_nearest2d_forward = _kernel("upsample_nearest2d_forward", "planes planes int", one_a_plane_of_second)
upsample_nearest2d_backward = _kernel("upsample_nearest2d_backward", "planes planes int bool")
parity_maps = _kernel("parity_maps", "planes int", one)
concat_forward = _kernel("concat_forward", "planes planes int", one_a_plane_of_second)
concat_backward = _kernel("concat_backward", "planes planes int bool")

# ---- activation, alone or fused with pooling and upsampling for interlinking layers

tanh_forward = _kernel("tanh_forward", "planes planes")
tanh_backward = _kernel("tanh_backward", "planes planes planes flat bool")
interlink_forward = _kernel("interlink_forward", "planes planes planes planes")
interlink_backward = _kernel("interlink_backward", "planes planes planes planes planes flat")

"""Options with which Numba compiles the kernels' functions."""

from typing import Any

#: "contract" lets LLVM fuse a * b + c, "reassoc" lets it vectorise sums. NaN and infinities stay correct.
FAST = {"contract", "reassoc", "nsz", "arcp"}
#: Of every function. Without memory management (_nrt) one that allocates does not compile.
STRICT: dict[str, Any] = {"error_model": "numpy", "_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
#: Of functions whose operations may be fused and reordered.
SERIAL: dict[str, Any] = STRICT | {"fastmath": FAST}

"""Backend "numba": compiled kernels with explicit vectors."""

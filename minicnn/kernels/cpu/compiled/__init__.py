"""What Numba compiles: the loops of the kernels. Only processes that compile import these modules.

The modules of `minicnn.kernels.cpu` choose sizes, take workspace and bind arguments; those of the same names here have
the functions that run. Each takes (first task, end of the tasks, number of the thread) before its arguments.
"""

"""Backends "cupy" and "cublas": CUDA C++ kernels on an NVIDIA GPU."""

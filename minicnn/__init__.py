"""Small convolutional-network library without autograd: every forward and backward kernel is written by hand."""

from minicnn.graph import Graph
from minicnn.kernels import get_backend
from minicnn.plan import Plan
from minicnn.sgd import SGD

__all__ = ["SGD", "Graph", "Plan", "get_backend"]

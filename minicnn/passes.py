"""Kernel calls of the passes over a graph, bound to their arrays: what a plan runs."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from minicnn.arrays import Arrays
from minicnn.graph import Graph, Node
from minicnn.kernels.backend import Backend
from minicnn.layers import Concat, Operands
from minicnn.loss import SoftmaxCrossEntropy
from minicnn.parameters import Parameters
from minicnn.planner import Schedule, Unit
from minicnn.sgd import SGD

Call = Callable[[], None]


class UnitCalls(NamedTuple):
    """One unit of a pass: the name of its first node, and its kernel calls."""

    node: str
    calls: list[Call]


class _Recorder:
    """Backend stand-in that collects a layer's kernel calls, bound to their arrays, without executing them."""

    def __init__(self, kernels: Backend):
        self._kernels = kernels
        self.calls: list[Call] = []

    def __getattr__(self, kernel: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append(self._kernels.bind(kernel, *arguments))


class Binder:
    """Binds the kernel calls of each pass to a plan's arrays, for any number of images.

    Parameters
    ----------
    graph : Graph
    schedule : Schedule
    needed : set of str
        Nodes whose gradient is computed.
    kernels : Backend
    arrays : Arrays
    store : Parameters
    loss : SoftmaxCrossEntropy
    """

    def __init__(
        self,
        graph: Graph,
        schedule: Schedule,
        needed: set[str],
        kernels: Backend,
        arrays: Arrays,
        store: Parameters,
        loss: SoftmaxCrossEntropy,
    ):
        self._graph = graph
        self._schedule = schedule
        self._units = [unit for unit in schedule.units if unit.node.inputs]
        self._needed = needed
        self._kernels = kernels
        self._array = arrays.of
        self._workspace = arrays.workspace
        self._store = store
        self._loss = loss

    def forward(self, n: int) -> list[UnitCalls]:
        """Return the calls of a forward pass over n images, unit by unit."""
        return [UnitCalls(unit.node.name, self._forward(unit, n)) for unit in self._units]

    def loss(self, n: int) -> Call:
        """Return the call that computes the loss."""
        return self._loss.forward(self._array("activation", self._graph.output.name, n), self._workspace)

    def loss_gradient(self, n: int) -> Call:
        """Return the call that computes the gradient of the logits."""
        return self._loss.backward(self._array("gradient", self._graph.output.name, n), self._workspace)

    def update(self, optimiser: SGD, rate) -> Call:
        """Return the call that applies the gradients, with the learning rate in the 0-d array `rate`."""
        store = self._store
        settings = optimiser.momentum, optimiser.nesterov, optimiser.weight_decay, optimiser.shrink
        arrays = store.flat, store.flat_velocity, store.flat_gradients, rate, self._workspace
        return self._kernels.bind("sgd_update", *arrays, *settings)

    def _local(self, views: Mapping[str, Any], node: Node) -> dict:
        return {array: views[f"{node.name}/{array}"] for array in node.parameters}

    def _forward(self, unit: Unit, n: int) -> list[Call]:
        node, recorder = unit.node, _Recorder(self._kernels)
        y = self._array("activation", node.name, n)
        xs = [self._array("activation", name, n) for name in node.inputs]
        if unit.tanh is not None:
            pooled, up = (self._link("activation", link, y, n) for link in (unit.pooled, unit.up))
            values = self._local(self._store.values, node)
            recorder.conv2d_tanh_forward(y, pooled, up, xs[0], values["weight"], values["bias"], self._workspace)
        elif not isinstance(node.layer, Concat) or not all(self._lies_in(node, x, "activation") for x in node.inputs):
            node.layer.forward(recorder, Operands(y, xs, self._local(self._store.values, node), self._workspace))
        return recorder.calls

    def _link(self, kind: str, link: Node | None, y, n: int):
        """Return the array of a unit's pooled or upsampled copy, or `y` sliced to 0 channels if there is none."""
        if link is None or (kind == "gradient" and link.name not in self._needed):
            return y[:, :0]
        return self._array(kind, link.name, n)

    def _lies_in(self, concat: Node, name: str, kind: str) -> bool:
        """Return True if the array of input `name` is a part of the concatenation's array."""
        homes = self._schedule.homes
        return homes[f"{kind}/{name}"][0] == homes[f"{kind}/{concat.name}"][0]

    def backward(self, n: int) -> list[UnitCalls]:
        """Return the calls of a backward pass, in reverse order; the first writer of a gradient stores, others add."""
        written: set[str] = set()
        calls = []
        for unit in reversed(self._units):
            node = unit.node
            if node.name not in self._needed:
                continue
            dxs, adds = [], []
            for name in node.inputs:
                settled = isinstance(node.layer, Concat) and self._lies_in(node, name, "gradient")
                dxs.append(self._array("gradient", name, n) if name in self._needed and not settled else None)
                adds.append(name in written)
                written.add(name)
                written.update(self._residents(name))
            last = unit.tanh or node
            has_gradient = last.name in written or last is self._graph.output
            calls.append(UnitCalls(node.name, self._backward(unit, n, dxs, adds, has_gradient)))
        return calls

    def _residents(self, concat: str) -> list[str]:
        """Return the inputs of a concatenation whose gradients are parts of its gradient array."""
        node = self._graph.nodes[concat]
        if concat not in self._needed or not isinstance(node.layer, Concat):
            return []
        return [name for name in node.inputs if name in self._needed and self._lies_in(node, name, "gradient")]

    def _backward(self, unit: Unit, n: int, dxs: list, adds: list[bool], has_gradient: bool) -> list[Call]:
        node, recorder = unit.node, _Recorder(self._kernels)
        dy = self._array("gradient", node.name, n)
        y = self._array("activation", node.name, n)
        if unit.tanh is not None:
            dpooled, dup = (self._link("gradient", link, y, n) for link in (unit.pooled, unit.up))
            own = self._array("gradient", unit.tanh.name, n)
            if not has_gradient:  # only the unit's own pooled and upsampled copies read the tanh
                own = own[:, :0]
            recorder.interlink_backward(dy, own, dpooled, dup, y, self._workspace)
        if node.parameters or any(dx is not None for dx in dxs):
            xs = [self._array("activation", name, n) for name in node.inputs]
            values, gradients = self._local(self._store.values, node), self._local(self._store.gradients, node)
            operands = Operands(y, xs, values, self._workspace, dy, dxs, adds, gradients)
            node.layer.backward(recorder, operands)
        return recorder.calls


class PassCalls:
    """Kernel calls of a training step over n images, without the update.

    Each is bound when it is first used: inference needs no backward pass.
    """

    def __init__(self, binder: Binder, n: int):
        self._binder = binder
        self._n = n

    @cached_property
    def forward(self) -> list[UnitCalls]:
        return self._binder.forward(self._n)

    @cached_property
    def loss(self) -> Call:
        return self._binder.loss(self._n)

    @cached_property
    def loss_gradient(self) -> Call:
        return self._binder.loss_gradient(self._n)

    @cached_property
    def backward(self) -> list[UnitCalls]:
        return self._binder.backward(self._n)

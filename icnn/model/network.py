"""The interlinked convolutional network of Fig. 1, as a graph.

Four rows of convolutions work on the image at full, 1/2, 1/4 and 1/8 size::

    row 1 (full)  conv --.-- conv --.-- conv --.-- conv ------------ conv -- 9 x 9 -- logits
    row 2 (1/2)   conv --+-- conv --+-- conv --+-- conv ----- conv --'
    row 3 (1/4)   conv --+-- conv --+-- conv --+-- conv --conv--'
    row 4 (1/8)   conv --'-- conv --'-- conv --'-- conv --'
                  round 0    round 1    round 2    round 3    output integration

Before each of rounds 1 to 3 every row concatenates its own feature maps, the
finer row's (max-pooled) and the coarser row's (upsampled) (Sec. 2.2).
Output integration merges the rows from row 4 up to row 1 (Sec. 2.3).

The preset "separate" has no such links but as many parameters; it measures what interlinking contributes.
"""

from dataclasses import dataclass, replace

from minicnn import Graph
from minicnn.layers import Concat, Conv2D, Input, Layer, MaxPool2D, MeanPool2D, Tanh, UpsampleNearest2D

ROUNDS = 3


@dataclass(frozen=True)
class Preset:
    """Architecture variant: as in the paper, as in the authors' released program, or without links.

    Attributes
    ----------
    pyramid : layer that halves the input image
    down : layer that halves feature maps in an interlinking layer
    up : layer that doubles feature maps
    first_kernel_size : kernel size of the first convolution
    init : weight initialisation, see `minicnn.layers.Conv2D`
    channels : feature maps of each row
    interlinked : True if the rows exchange feature maps before output integration
    """

    pyramid: Layer
    down: Layer
    up: Layer
    first_kernel_size: int
    init: str
    channels: tuple[int, int, int, int] = (8, 16, 24, 32)
    interlinked: bool = True


_RELEASED_POOL = MaxPool2D(kernel_size=3, stride=2, padding=1)

_PAPER = Preset(MeanPool2D(2), MaxPool2D(2, 2), UpsampleNearest2D(2), 5, "glorot_uniform")

PRESETS = {
    "paper": _PAPER,
    "released": Preset(
        _RELEASED_POOL, _RELEASED_POOL, UpsampleNearest2D(2, parity=True), 9, "fan_in_uniform"
    ),
    "separate": replace(_PAPER, channels=(12, 24, 35, 47), interlinked=False),
}  # fmt: skip


def icnn_graph(labels: int, size: int, preset: str = "paper") -> Graph:
    """Build the network.

    Parameters
    ----------
    labels : int
        Number of classes L, including the background: 9 in stage 1; 2, 2, 2 and 4 in stage 2.
    size : int
        Side of the square input in pixels, a multiple of 8.
    preset : "paper", "released" or "separate"

    Returns
    -------
    Graph
        Maps images (3, size, size) to logits (labels, size, size).

    Raises
    ------
    ValueError
        For fewer than 2 classes, an invalid size, or an unknown preset.
    """
    if labels < 2:
        raise ValueError(f"expected at least 2 labels, background and one part, got {labels}")
    if size < 8 or size % 8:
        raise ValueError(f"expected a size that is a multiple of 8, got {size}")
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: expected one of {', '.join(PRESETS)}")
    graph = Graph(preset=preset, labels=labels, size=size)
    rows = _round0(graph, size, PRESETS[preset])
    for number in range(1, ROUNDS + 1):
        rows = _round(graph, rows, number, PRESETS[preset])
    _integrate(graph, rows, labels, PRESETS[preset])
    return graph


def _convolution(graph: Graph, name: str, source: str, out_channels: int, kernel_size: int, preset: Preset) -> str:
    """Add a convolution and tanh, eq. (1); return the name of the output."""
    graph.add(f"{name}/conv", Conv2D(out_channels, kernel_size, preset.init), source)
    return graph.add(f"{name}/tanh", Tanh(), f"{name}/conv")


def _round0(graph: Graph, size: int, preset: Preset) -> list[str]:
    """Add the input pyramid (Sec. 2.6) and the first convolution of every row; return the output names."""
    rows = []
    image = graph.add("image", Input(3, size, size))
    for k, out_channels in enumerate(preset.channels, start=1):
        if k > 1:
            image = graph.add(f"row{k}/image", preset.pyramid, image)
        rows.append(_convolution(graph, f"row{k}/round0", image, out_channels, preset.first_kernel_size, preset))
    return rows


def _round(graph: Graph, rows: list[str], number: int, preset: Preset) -> list[str]:
    """Add the convolution of every row, after an interlinking layer if the preset has them; return the output names."""
    sources = _interlink(graph, rows, number, preset) if preset.interlinked else rows
    return [
        _convolution(graph, f"row{k}/round{number}", source, out_channels, 5, preset)
        for k, (source, out_channels) in enumerate(zip(sources, preset.channels, strict=True), start=1)
    ]


def _interlink(graph: Graph, rows: list[str], number: int, preset: Preset) -> list[str]:
    """Add an interlinking layer (Sec. 2.2): for every row the concatenation [own | finer | coarser]."""
    linked = []
    for k, own in enumerate(rows, start=1):
        name = f"row{k}/round{number}"
        sources = [own]
        if k > 1:
            sources.append(graph.add(f"{name}/finer", preset.down, rows[k - 2]))
        if k < len(rows):
            sources.append(graph.add(f"{name}/coarser", preset.up, rows[k]))
        linked.append(graph.add(f"{name}/concat", Concat(), *sources))
    return linked


def _integrate(graph: Graph, rows: list[str], labels: int, preset: Preset) -> None:
    """Add output integration (Sec. 2.3): from the coarsest row up, then the last convolution, without tanh."""
    coarser = rows[-1]
    out_channels = {3: 24, 2: 16, 1: 2 * (labels - 1) + 8}
    for k in (3, 2, 1):
        name = f"integrate/row{k}"
        upsampled = graph.add(f"{name}/coarser", preset.up, coarser)
        joined = graph.add(f"{name}/concat", Concat(), rows[k - 1], upsampled)
        coarser = _convolution(graph, name, joined, out_channels[k], 5, preset)
    graph.add("output/conv", Conv2D(labels, 9, preset.init), coarser)

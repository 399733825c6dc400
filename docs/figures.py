"""Draw the tutorial's figures into docs/figures: ``python docs/figures.py [--check] [NAME ...]``.

All are made from the code and from synthetic faces. With --check they are drawn again and compared with what is there
by the texts of a drawing (channels, labels, axes), or the size and look of a picture; those that differ are named.
"""

import io
import re
import sys
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from icnn.config import Augment, Train
from icnn.data.overlay import overlay
from icnn.model.network import icnn_graph
from icnn.model.patches import cut_patch, most_probable, patch_origin
from icnn.model.pipeline import load_pipeline
from icnn.model.weights import SHIPPED
from icnn.stages import NETWORKS, PATCHES
from icnn.synthetic.faces import synthetic_face, synthetic_faces
from icnn.train.batches import Batches, samples_of
from minicnn import SGD, Plan
from minicnn.layers import Concat, Input, MaxPool2D, MeanPool2D, Tanh, UpsampleNearest2D

FOLDER = Path(__file__).parent / "figures"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "icnn", "font.family": "sans-serif", "font.size": 9}
ALIKE = 4.0  # grey levels, mean: the same picture, compressed by another version

BLUE, ORANGE, GREEN, BLACK, GREY = "#1f6fd0", "#e08a00", "#2e9e4f", "#222222", "#888888"
#: What an arrow of Fig. 1 stands for -> its colour.
LINKS = {"own maps": BLACK, "finer, max-pooled": BLUE, "coarser, upsampled": ORANGE, "image, mean-pooled": GREEN}


def window(_quick: bool) -> Figure:
    """The padded 4 x 4 image of chapter 2, a window on it, and the output pixel."""
    x = [[1, 2, 0, 1], [0, 1, 3, 1], [2, 0, 1, 0], [1, 1, 0, 2]]
    figure = Figure((5.6, 2.6))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-1.4, 12.4), ylim=(5.6, -1.4), aspect="equal")
    axes.axis("off")
    for i in range(-1, 5):
        for j in range(-1, 5):
            inside = 0 <= i < 4 and 0 <= j < 4
            in_window = i < 3 and j < 3 and i >= 0 and j >= 0
            colour = "#cfe2ff" if in_window else "white" if inside else "#eeeeee"
            axes.add_patch(_square(j, i, colour))
            axes.text(j + 0.5, i + 0.5, x[i][j] if inside else 0, ha="center", va="center")
    for i in range(4):
        for j in range(4):
            axes.add_patch(_square(j + 7.5, i, "#cfe2ff" if (i, j) == (1, 1) else "white"))
    axes.text(9, 1.5, "3", ha="center", va="center")
    axes.annotate("", (8.45, 1.5), (5.1, 1.5), arrowprops={"arrowstyle": "->", "color": BLUE})
    axes.text(2, 5.4, "x, padded with zeros", ha="center")
    axes.text(9.5, 5.4, "y", ha="center")
    return figure


def _square(x: float, y: float, colour: str):
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 1, 1, facecolor=colour, edgecolor=GREY, linewidth=0.7)


def network(_quick: bool) -> Figure:
    """Fig. 1 from the graph: feature maps as boxes with their channels, and how each layer gets its inputs."""
    graph = icnn_graph(labels=9, size=64)
    column, edges = {}, []
    for node in graph.nodes.values():
        if isinstance(node.layer, Input | MeanPool2D):
            column[node.name] = 0
            edges += [(node.inputs[0], node.name, GREEN, "-")] if node.inputs else []
        elif node.parameters:
            (source,) = node.inputs
            layer = graph.nodes[source].layer
            sources = graph.nodes[source].inputs if isinstance(layer, Concat) else (source,)
            for name in sources:
                maps, colour = graph.nodes[name], BLACK
                if isinstance(maps.layer, MaxPool2D | UpsampleNearest2D):
                    colour = BLUE if isinstance(maps.layer, MaxPool2D) else ORANGE
                    maps = graph.nodes[maps.inputs[0]]
                start = maps.inputs[0] if isinstance(maps.layer, Tanh) else maps.name
                edges.append((start, node.name, colour, ":" if node is graph.output else "-"))
            ends = [column[start] for start, end, *_ in edges if end == node.name]
            column[node.name] = max(ends) + 1
    places = {name: (column[name], int(np.log2(64 // graph.nodes[name].shape[1]))) for name in column}
    figure = Figure((9, 3.9))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.95, 8.6), ylim=(4.2, -1.0))
    axes.axis("off")
    for start, end, colour, style in edges:
        (x, y), (to_x, to_y) = places[start], places[end]
        shrink = {"shrinkA": 9, "shrinkB": 9} if x == to_x else {"shrinkA": 15, "shrinkB": 15}
        arrow = {"arrowstyle": "-|>", "color": colour, "linestyle": style, "linewidth": 1, **shrink}
        axes.annotate("", (to_x, to_y), (x, y), arrowprops=arrow)
    for name, (x, y) in places.items():
        channels = graph.nodes[name].shape[0]
        box = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": BLACK}
        axes.text(x, y, channels, ha="center", va="center", bbox=box)
    for k in range(4):
        side = 64 >> k
        axes.text(-0.4, k, f"row {k + 1}\n{side} x {side}", ha="right", va="center", color=BLACK, fontsize=8)
    heads = ["image", *(f"round {n}" for n in range(4)), *(f"row {k}" for k in (3, 2, 1)), "output"]
    for x, head in enumerate(heads):
        axes.text(x, -0.55, head, ha="center", fontsize=8)
    axes.text(6, -0.75, "integration", ha="center", fontsize=8, color=GREY)
    for n, (text, colour) in enumerate(LINKS.items()):
        axes.annotate("", (0.75 + 2 * n, 3.8), (0.4 + 2 * n, 3.8), arrowprops={"arrowstyle": "-|>", "color": colour})
        axes.text(0.85 + 2 * n, 3.8, text, va="center", fontsize=8)
    return figure


def differences(_quick: bool) -> Figure:
    """Error of central differences by the size of the step, in float64 and float32 (chapter 6)."""
    steps = 10.0 ** np.arange(-13, 0)
    figure = Figure((5.6, 3))
    axes = figure.add_axes((0.13, 0.17, 0.84, 0.79), xscale="log", yscale="log", xlim=(1e-13, 1), ylim=(1e-12, 10))
    for dtype, colour in (("float32", ORANGE), ("float64", BLUE)):
        x = np.asarray(0.7, dtype)
        slope = 1 - np.tanh(np.float64(x)) ** 2
        numeric = [
            (np.tanh(x + np.asarray(h, dtype)) - np.tanh(x - np.asarray(h, dtype))).astype(float) / (2 * h)
            for h in steps
        ]
        axes.plot(steps, np.maximum(np.abs(np.array(numeric) - slope) / slope, 1e-12), "o-", color=colour, markersize=3)
        axes.text(*{"float32": (2e-7, 0.5), "float64": (3e-11, 1e-5)}[dtype], dtype, color=colour)
    axes.set_xlabel("step of the difference")
    axes.set_ylabel("relative error")
    axes.text(3e-4, 3e-10, "step too coarse", color=GREY)
    axes.text(2e-13, 3e-9, "rounding", color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def curves(quick: bool) -> Figure:
    """Training losses of the eye network on synthetic faces, for three learning rates (chapter 7)."""
    steps = 2 if quick else 200
    faces = synthetic_faces(2 if quick else 60, 0, "exemplars")
    batches = Batches("eye", samples_of("eye", faces), Train(batch=8), Augment(shift=5), seed=0)
    made = [batches.make(step) for step in range(steps)]
    figure = Figure((5.6, 3))
    axes = figure.add_axes((0.11, 0.17, 0.86, 0.79), xlim=(0, 200), yscale="log", ylim=(0.01, 1000))
    for lr, colour in ((0.001, GREEN), (0.02, BLUE), (0.3, ORANGE)):
        plan = Plan(icnn_graph(NETWORKS["eye"].labels, 64), 8, "numba", threads=1)
        losses = [float(plan.step(b.images, b.labels, SGD(lr=lr, momentum=0.9), b.weights)) for b in made]
        axes.plot(losses, color=colour, linewidth=1, label=f"rate {lr:g}")
    axes.legend(frameon=False)
    axes.set_xlabel("step")
    axes.set_ylabel("loss of the batch")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def stages(_quick: bool) -> Image.Image:
    """A synthetic face through both stages: labels of stage 1, centres and patches, labelled patches, labels."""
    face = synthetic_face(0, "testing", 2)
    pipeline = load_pipeline(SHIPPED, "numpy", 2, threads=1)
    located = pipeline.locate([face.image])
    patches = pipeline.label_patches([face.image], located.centres)
    small = Image.fromarray(overlay(np.asarray(Image.fromarray(face.image).resize((64, 64))), located.labels[0], 0.7))
    marked = Image.fromarray(face.image)
    draw = ImageDraw.Draw(marked)
    tiles = Image.new("RGB", (256, 256), "white")
    for number, patch in enumerate(PATCHES):
        x, y = located.centres[0, number]
        corner = patch_origin(located.centres[0, number], patch.size, face.image.shape[:2])
        draw.rectangle((*corner, corner[0] + patch.size - 1, corner[1] + patch.size - 1), outline=(255, 225, 60))
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(230, 40, 60))
        values, _ = cut_patch(face.image, tuple(patches.origins[number][0]), patch)
        labels = pipeline.labels_of_patch(patch, patches.logits[number])[0]
        tile = Image.fromarray(overlay(np.ascontiguousarray(values), labels, 0.7))
        tiles.paste(tile, (8 + number % 3 * 84, 32 + number // 3 * 100))
    joint = pipeline.joint_probabilities(face.image.shape[:2], patches)[0]
    whole = Image.fromarray(overlay(face.image, most_probable(joint), 0.7))
    sheet = Image.new("RGB", (4 * 256 + 24, 256), "white")
    for place, one in enumerate((small.resize((256, 256), Image.Resampling.NEAREST), marked, tiles, whole)):
        sheet.paste(one, (place * 264, 0))
    return sheet


FIGURES = {
    "window.svg": window,
    "network.svg": network,
    "differences.svg": differences,
    "curves.svg": curves,
    "stages.jpg": stages,
}


def rendered(name: str, quick: bool = False) -> bytes:
    """Draw a figure and return the file; `quick` computes less and keeps the structure."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        drawn = FIGURES[name](quick)
        if isinstance(drawn, Figure):
            drawn.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
        else:
            drawn.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def same(name: str, old: bytes, new: bytes) -> bool:
    """Compare two files of a figure by structure, not by bytes."""
    if name.endswith(".svg"):
        return sorted(re.findall(rb"<text[^>]*>([^<]*)", old)) == sorted(re.findall(rb"<text[^>]*>([^<]*)", new))
    pictures = [np.asarray(Image.open(io.BytesIO(one)), float) for one in (old, new)]
    return pictures[0].shape == pictures[1].shape and np.abs(pictures[0] - pictures[1]).mean() < ALIKE


def main(arguments: list[str]) -> int:
    """Draw the named figures, or all; or check them."""
    check = "--check" in arguments
    stale = 0
    for name in [one for one in arguments if one != "--check"] or FIGURES:
        path = FOLDER / name
        if not check:
            path.write_bytes(rendered(name))
        elif not path.is_file() or not same(name, path.read_bytes(), rendered(name, quick=True)):
            print(f"{path}: not what docs/figures.py draws now; run it", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

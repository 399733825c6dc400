"""Command ``python -m icnn.train.finder``: train the network that finds faces on scenes of `icnn.train.scenes`."""

import json
import math
from argparse import ArgumentTypeError
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from icnn.cli import (
    NotFiniteError,
    Parser,
    Signals,
    compilation_announced,
    existing_folder,
    natural,
    positive,
    progress,
    run,
)
from icnn.data.folder import SmithFolder
from icnn.data.images import read_image
from icnn.model.finder import finder_graph, network_input, probabilities
from icnn.synthetic.faces import synthetic_faces
from icnn.train.scenes import SIZE, Scene, Source, draw_scene, negative_of, sources_of, turned
from minicnn import SGD, Plan
from minicnn.checkpoint import load_tensors, save_tensors
from minicnn.kernels import choose_backend
from minicnn.sgd import Cosine

_BATCH = 32  # scenes
_POOL, _NEW = 1200, 3  # scenes from which batches are drawn, and how many of them a step replaces
_VALIDATION = 48  # scenes
_HELD_BACK = 20  # one photograph in so many is only for validation
_EVERY = 500  # steps from one validation and checkpoint to the next
_FACE_WEIGHT = 5.0  # of a cell with a face against one without, which are many
_EASY = 0.1  # weight of a cell that is labelled right for certain; of one that is wrong for certain: this + 1
_MOST_GRADIENT = 1.0  # Euclidean length to which a larger gradient is scaled
_WARMUP = 200  # steps


class Batch(NamedTuple):
    """Images (n, 3, SIZE, SIZE) float32, labels (n, cells, cells) int32 and weights (n, cells, cells) float32."""

    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not options.out.parent.is_dir():
        parser.error(f"argument --out: expected a file in an existing folder, got {options.out}")
    backend, _ = choose_backend(options.backend)
    state = options.out.with_suffix(".state")
    with Signals() as signals, compilation_announced():
        plan = Plan(finder_graph(SIZE), _BATCH, backend, seed=options.seed, threads=options.threads)
        if state.exists():
            tensors, metadata = load_tensors(state)
            plan.restore(tensors, int(metadata["step"]))
        training, held_back = _load(options.data, options.negatives, options.synthetic, options.seed)
        rng = np.random.default_rng([options.seed, 0])
        validation = _batch([draw_scene(held_back, rng) for _ in range(_VALIDATION)])
        batches = _batches(training, options.seed, plan.step_count, options.steps)
        optimiser = SGD(Cosine(options.lr, options.steps, _WARMUP), momentum=0.9, nesterov=True)
        for batch in progress(batches, "training", options.steps - plan.step_count):
            loss = train_step(plan, batch, optimiser)
            if plan.step_count % _EVERY == 0 or plan.step_count == options.steps or signals.number:
                if not math.isfinite(loss):
                    raise NotFiniteError(f"the loss became {loss} at step {plan.step_count}; try a smaller --lr")
                plan.save(options.out, card=json.dumps(options.card))
                save_tensors(state, plan.state(), {"step": plan.step_count})
                print(f"step {plan.step_count}: loss {loss:.3f}, average precision {precision(plan, validation):.3f}")
            signals.check()
    state.unlink(missing_ok=True)
    return 0


def _load(folders: Sequence[Path], negatives: Sequence[Path], count: int, seed: int) -> tuple[list[Source], ...]:
    """Return the photographs for training and for validation: of `folders`, `count` synthetic ones, and negatives."""
    sources = sources_of(synthetic_faces(count, seed, "exemplars"))
    for folder in folders:
        sources += sources_of(SmithFolder(folder).load_split("exemplars"))
    held_back = sources[::_HELD_BACK]
    training = [source for number, source in enumerate(sources) if number % _HELD_BACK]
    files = [path for folder in negatives for path in sorted(folder.iterdir())]
    without = [negative_of(read_image(path)) for path in files]
    # About a quarter of the layers show no face.
    return training + without * (len(training) // max(1, 3 * len(without))), held_back


def _batches(sources: Sequence[Source], seed: int, first: int, end: int) -> Iterator[Batch]:
    """Yield the batches of steps `first` to `end`, each drawn while the one before it is trained on.

    Drawing a scene costs as much as training on it, so scenes stay in a pool and are drawn from it several times.
    """

    def draw(step: int) -> Batch:
        newest = _POOL + _NEW * step
        for number in range(newest - (_NEW if pool else _POOL), newest):
            pool.append(draw_scene(sources, np.random.default_rng([seed, 1, number])))
        rng = np.random.default_rng([seed, 2, step])
        return _batch([turned(pool[n], rng) for n in rng.integers(0, _POOL, _BATCH)])

    pool: deque[Scene] = deque(maxlen=_POOL)
    with ThreadPoolExecutor(1) as executor:
        following = executor.submit(draw, first)
        for step in range(first, end):
            batch, following = following.result(), executor.submit(draw, step + 1)
            yield batch


def _batch(scenes: Sequence[Scene]) -> Batch:
    values, labels, weights = map(np.stack, zip(*scenes, strict=True))
    return Batch(network_input(values), labels, weights)


def train_step(plan: Plan, batch: Batch, optimiser: SGD) -> float:
    """Train on one batch; return the loss, in which cells count the more the less probable their label is."""
    logits = plan.download(plan.forward(batch.images))
    right = np.take_along_axis(probabilities(logits), batch.labels[:, None], 1)[:, 0]
    weights = batch.weights * np.where(batch.labels > 0, _FACE_WEIGHT, 1) * (_EASY + 1 - right)
    loss = float(plan.loss(batch.labels, weights))
    plan.backward()
    length = math.sqrt(float((plan.flat_gradients**2).sum()))
    plan.flat_gradients[:] *= min(1.0, _MOST_GRADIENT / max(length, 1e-12))
    plan.update(optimiser)
    return loss


def precision(plan: Plan, batch: Batch) -> float:
    """Compute the average precision of the cells with a face, over all thresholds of the probability."""
    face, labels = [], []
    for first in range(0, len(batch.images), plan.batch):
        own = slice(first, first + plan.batch)
        counts = batch.weights[own] > 0
        face.append(1 - probabilities(plan.download(plan.forward(batch.images[own])))[:, 0][counts])
        labels.append(batch.labels[own][counts] > 0)
    hits = np.concatenate(labels)[np.argsort(-np.concatenate(face), kind="stable")]
    return float((hits.cumsum() / np.arange(1, len(hits) + 1))[hits].mean())


def _card(text: str) -> dict[str, str]:
    """Parse the model card, a JSON object; an argparse type."""
    try:
        card = json.loads(text)
    except ValueError:
        card = None
    if not isinstance(card, dict):
        raise ArgumentTypeError(f"expected a JSON object with texts for data and terms, got {text!r}")
    return card


def _parser() -> Parser:
    parser = Parser(
        prog="python -m icnn.train.finder",
        description="Train the network that finds faces on drawn scenes, which show faces of photographs at random "
        "places, sizes and angles. Every 500 steps the weights and a file NAME.state are written; with it, the same "
        "command goes on.",
    )
    add = parser.add_argument
    add(
        "--data", type=existing_folder, action="append", default=[], metavar="DIR",
        help="folder in the layout of Smith et al. (may be given several times; default: synthetic faces only)",
    )  # fmt: skip
    add(
        "--negatives", type=existing_folder, action="append", default=[], metavar="DIR",
        help="folder of images without faces (may be given several times)",
    )  # fmt: skip
    add("--out", type=Path, required=True, metavar="FILE", help="the weights")
    add("--synthetic", type=positive, default=300, metavar="N", help="number of synthetic faces (default: 300)")
    add("--steps", type=positive, default=12000, metavar="N", help="number of updates (default: 12000)")
    add("--lr", type=float, default=0.02, help="largest learning rate (default: 0.02)")
    add("--seed", type=natural, default=0, metavar="S", help="seed of weights and scenes (default: 0)")
    add("--card", type=_card, default={}, metavar="JSON", help="model card: texts for data and terms")
    parser.add_backend()
    parser.add_threads()
    return parser


if __name__ == "__main__":
    run(main, "icnn.train.finder")

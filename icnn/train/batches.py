"""Training batches as a pure function of (seed, network, step), prefetched by a thread.

Nothing here keeps state: order and augmentation of every batch follow from
its number, so a resumed run gets the same batches as an uninterrupted one.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from icnn.classes import MIRRORED
from icnn.config import Augment, Train
from icnn.data.augment import Draw
from icnn.data.folder import Face
from icnn.data.geometry import Letterbox, compose, patch_matrix
from icnn.data.photometric import Appearance
from icnn.data.resample import labels_of, normalise, warp
from icnn.errors import InputError
from icnn.model.centres import part_centres
from icnn.model.patches import cut_patch, patch_origin
from icnn.stages import NETWORKS, PATCHES, STAGE2, Patch
from minicnn.distributed import Communicator, shards_of

#: First element of the spawn key for each use of a run's seed, so that no two uses share a random stream.
ORDER, AUGMENT, WEIGHTS = 0, 1, 2


def spawned(seed: int, network: str, *use: int) -> np.random.SeedSequence:
    """Derive from the run's seed that of one use in one network: order, augmentation or weight initialisation.

    `use` is `ORDER`, `AUGMENT` or `WEIGHTS`; an epoch follows `ORDER` and a step `AUGMENT`.
    """
    return np.random.SeedSequence(seed, spawn_key=(list(NETWORKS).index(network), *use))


def generator(seed: int, network: str, *use: int) -> np.random.Generator:
    """Return a random generator seeded with `spawned(seed, network, *use)`."""
    return np.random.default_rng(spawned(seed, network, *use))


class Sample(NamedTuple):
    """Training sample: a whole face (stage 1), or one patch of a face with its true centre (x, y)."""

    face: Face
    patch: Patch | None = None
    centre: np.ndarray | None = None


class Batch(NamedTuple):
    """Images (n, 3, S, S) float32, labels (n, S, S) uint8 and weights (n, S, S) float32, 0 outside the image."""

    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def samples_of(network: str, faces: Sequence[Face], centre_rule: str = "median") -> list[Sample]:
    """Return all samples of a network, without patches of parts that a face does not have.

    Raises
    ------
    InputError
        If no face has any of the network's parts.
    """
    if network == "stage1":
        return [Sample(face) for face in faces]
    samples = []
    for face in faces:
        centres = part_centres(face.labels(), centre_rule)
        for patch, centre in zip(PATCHES, centres, strict=True):
            if patch.network == network and not np.isnan(centre[0]):
                samples.append(Sample(face, patch, centre))
    if not samples:
        raise _without_parts(len(faces), network)
    return samples


def _without_parts(faces: int, network: str) -> InputError:
    return InputError(f"none of the {faces} faces has a label of {network}: expected part maps, see docs/data.md")


def require_parts(faces: Sequence[Face]) -> None:
    """Check before training that every network has at least one sample.

    Raises
    ------
    InputError
        If no face has any part of a network; the message names the network.
    """
    seen: set[int] = set()
    for face in faces:
        seen.update(np.unique(face.labels()).tolist())
        if len(seen) == len(MIRRORED):
            return
    for name in STAGE2:
        if not any(seen.intersection(patch.ids) for patch in PATCHES if patch.network == name):
            raise _without_parts(len(faces), name)


#: Photometric augmentation of an input: (values (S, S, 3), inside (S, S)) -> values.
Recolour = Callable[[np.ndarray, np.ndarray], np.ndarray]


def make_sample(
    sample: Sample, draw: Draw, label_rule: str, recolour: Recolour | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make one augmented sample with a single warp of the photograph.

    Returns
    -------
    image : (3, S, S) float32
    labels : (S, S) uint8
    weights : (S, S) float32
        1 inside the photograph, 0 outside.
    """
    if sample.patch is None or sample.centre is None:
        size = NETWORKS["stage1"].size
        place = Letterbox.of(sample.face.pixels.shape[0], sample.face.pixels.shape[1], size).matrix()
    else:
        size = sample.patch.size
        place = patch_matrix(sample.centre, size, sample.patch.mirrored)
    values, inside = warp(sample.face.pixels, compose(place, draw.matrix(size)), size)
    labels = labels_of(values[..., 3:], inside, label_rule)
    if sample.patch is not None:
        labels = sample.patch.to_network_labels()[labels]
    elif draw.mirrored:
        labels = MIRRORED[labels]
    image = values[..., :3] if recolour is None else recolour(values[..., :3], inside)
    return normalise(image, inside), labels, inside.astype(np.float32)


class Batches:
    """Training batches of one network.

    Parameters
    ----------
    network : str
    samples : sequence of Sample
    train, augment : Train, Augment
    seed : int
    """

    def __init__(self, network: str, samples: Sequence[Sample], train: Train, augment: Augment, seed: int):
        self._network = network
        self._samples = samples
        self._train = train
        self._augment = augment
        self._seed = seed

    def epochs(self, steps: int) -> int:
        """Return the number of complete epochs after `steps` steps."""
        return steps * self._train.batch // len(self._samples)

    def order(self, step: int) -> list[int]:
        """Return the sample indices of batch `step`, from consecutive random permutations of all samples."""
        first = step * self._train.batch
        count = len(self._samples)
        permutations = {}
        numbers = []
        for position in range(first, first + self._train.batch):
            epoch, place = divmod(position, count)
            if epoch not in permutations:
                permutations[epoch] = generator(self._seed, self._network, ORDER, epoch).permutation(count)
            numbers.append(int(permutations[epoch][place]))
        return numbers

    def make(self, step: int, part: slice | None = None) -> Batch:
        """Make batch `step` (from 0), or only the slice `part` of it; samples do not depend on `part`."""
        rng = generator(self._seed, self._network, AUGMENT, step)
        settings, size = self._augment, NETWORKS[self._network].size
        shared = Draw.random(rng, settings) if settings.draw == "batch" else None

        def recolour(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
            return Appearance.random(rng, settings).apply(values, inside, rng)

        numbers = self.order(step)
        wanted = range(len(numbers))[part or slice(None)]
        made = []
        for place, number in enumerate(numbers):
            draw = shared or Draw.random(rng, settings)
            if place in wanted:
                made.append(make_sample(self._samples[number], draw, self._train.label_rule, recolour))
            else:
                Appearance.random(rng, settings).skip(size, rng)
        images, labels, weights = (np.stack(arrays) for arrays in zip(*made, strict=True))
        if self._train.part_weight != 1:
            weights[labels > 0] *= self._train.part_weight
        return Batch(images, labels, weights)

    def ahead(self, first: int, stop: int, depth: int = 2, part: slice | None = None) -> Iterator[Batch]:
        """Yield batches first .. stop - 1, or the slice `part` of each; a thread prefetches `depth` of them."""
        with ThreadPoolExecutor(1, "batches") as pool:
            upcoming = deque()
            try:
                for step in range(first, stop):
                    while len(upcoming) < depth and step + len(upcoming) < stop:
                        upcoming.append(pool.submit(self.make, step + len(upcoming), part))
                    yield upcoming.popleft().result()
            finally:
                for future in upcoming:
                    future.cancel()


def validation_batch(samples: Sequence[Sample], train: Train) -> Batch:
    """Make one batch of all samples, without augmentation; patches are cropped at whole pixels as in inference.

    Their centres are the true ones.
    """
    made = []
    for sample in samples:
        if sample.patch is None or sample.centre is None:
            made.append(make_sample(sample, Draw(), train.label_rule))
            continue
        patch, face = sample.patch, sample.face
        origin = patch_origin(sample.centre, patch.size, face.pixels.shape[:2])
        values, inside = cut_patch(face.pixels, origin, patch)
        labels = patch.to_network_labels()[labels_of(values[..., 3:], inside, train.label_rule)]
        made.append((normalise(values[..., :3], inside), labels, inside.astype(np.float32)))
    return Batch(*(np.stack(arrays) for arrays in zip(*made, strict=True)))


def shard_count(train: Train, comm: Communicator) -> int:
    """Return the number of shards per batch: `train.shards`, but at least one per process.

    Raises
    ------
    InputError
        If the batch has fewer images than shards, or the shards cannot be divided evenly among the processes.
    """
    count = max(train.shards, comm.size)
    if count > train.batch:
        raise InputError(
            f"expected a batch of at least one image a shard, got train.batch {train.batch} for {count} shards; "
            f"raise train.batch, or start fewer processes"
        )
    if count % comm.size:
        raise InputError(f"expected train.shards to be a multiple of the {comm.size} processes, got {count}")
    return count


def own_shards(train: Train, comm: Communicator) -> list[slice]:
    """Return the batch slices of the shards that this process computes, in order."""
    shards = shards_of(train.batch, shard_count(train, comm))
    each = len(shards) // comm.size
    return shards[comm.rank * each : (comm.rank + 1) * each]

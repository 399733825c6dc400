"""Batches: is each one a pure function of (seed, network, step), and what the networks will see in use?"""

import numpy as np
import pytest
from stubs import Listener

from icnn.classes import MIRRORED
from icnn.config import Augment, Train
from icnn.data.augment import Draw
from icnn.data.folder import Face
from icnn.errors import InputError
from icnn.model.centres import part_centres
from icnn.model.patches import cut_patch, patch_origin
from icnn.model.pipeline import Pipeline
from icnn.stages import NETWORKS, PATCHES
from icnn.train.batches import Batches, generator, make_sample, samples_of, validation_batch

TRAIN = Train(batch=4)
#: id -> left, top, width, height in a face of 120 x 150 pixels; odd sides, so that centres are whole pixels.
BOXES = {
    1: (25, 21, 21, 7),
    2: (31, 35, 15, 9),
    3: (81, 20, 21, 7),
    4: (83, 34, 15, 9),
    5: (56, 41, 17, 25),
    6: (48, 77, 33, 5),
    7: (48, 82, 33, 5),
    8: (48, 87, 33, 5),
}


def face(seed=0, missing=(), shape=(150, 120)):
    """A photograph of noise with parts as rectangles, jittered by the seed."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((*shape, 12), np.uint8)
    pixels[..., :3] = rng.integers(0, 256, (*shape, 3))
    for part, (left, top, width, height) in BOXES.items():
        if part not in missing:
            x, y = np.add((left, top), rng.integers(-3, 4, 2))
            pixels[y : y + height, x : x + width, 3:] = 0
            pixels[y : y + height, x : x + width, 3 + part] = 255
    pixels[..., 3] = 255 - pixels[..., 4:].sum(2)
    return Face(f"face{seed}", pixels)


def mirrored(original):
    """The same face seen in a mirror."""
    pixels = original.pixels[:, ::-1]
    maps = pixels[..., 3:][..., MIRRORED]
    return Face(original.name, np.ascontiguousarray(np.concatenate([pixels[..., :3], maps], axis=2)))


FACES = [face(seed) for seed in range(5)]


def batches(network="eye", train=TRAIN, augment=None, seed=7):
    return Batches(network, samples_of(network, FACES), train, augment or Augment(), seed)


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# ---------------------------------------------------------------- a pure function


@pytest.mark.parametrize("network", list(NETWORKS))
def test_a_batch_does_not_depend_on_the_object_or_on_what_was_made_before(network):
    used = batches(network)
    for step in (5, 0, 3):
        used.make(step)
    assert same(used.make(3), batches(network).make(3))


@pytest.mark.parametrize("first", [0, 1, 6])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_batches_made_ahead_are_those_made_one_by_one(first, depth):
    made = list(batches().ahead(first, 8, depth))
    assert len(made) == 8 - first
    for step, batch in enumerate(made, first):
        assert same(batch, batches().make(step))


def test_batches_made_ahead_can_be_left_early():
    stream = batches().ahead(0, 10**9)
    assert same(next(stream), batches().make(0))
    stream.close()


def test_an_error_in_the_thread_reaches_the_caller():
    broken = Batches("eye", [None], TRAIN, Augment(), 0)
    with pytest.raises(AttributeError):
        next(broken.ahead(0, 3))


def test_other_seeds_and_steps_give_other_batches():
    one = batches(seed=7).make(0)
    assert not same(one, batches(seed=8).make(0))
    assert not same(one, batches(seed=7).make(1))


def test_networks_and_uses_have_streams_of_their_own():
    drawn = {
        generator(seed, network, *use).random()
        for seed in (0, 1)
        for network in NETWORKS
        for use in [(0, 0), (0, 1), (1, 0), (1, 1), (2,)]
    }
    assert len(drawn) == 2 * len(NETWORKS) * 5


def test_networks_do_not_share_their_order():
    many = [samples_of("stage1", [FACES[0]])[0]] * 50
    orders = {tuple(Batches(name, many, Train(batch=50), Augment(), 0).order(0)) for name in NETWORKS}
    assert len(orders) == len(NETWORKS)


@pytest.mark.parametrize("batch, count", [(4, 10), (10, 10), (7, 3), (1, 4)])
def test_every_sample_appears_once_in_an_epoch(batch, count):
    source = Batches("nose", [None] * count, Train(batch=batch), Augment(), 0)
    numbers = [number for step in range(5 * count) for number in source.order(step)]
    epochs = np.reshape(numbers[: len(numbers) // count * count], (-1, count))
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1, "each epoch has an order of its own"


@pytest.mark.parametrize("network", list(NETWORKS))
def test_arrays_have_the_shapes_and_types_that_a_plan_takes(network):
    batch, size = batches(network).make(0), NETWORKS[network].size
    assert (batch.images.shape, batch.images.dtype) == ((4, 3, size, size), np.float32)
    assert (batch.labels.shape, batch.labels.dtype) == ((4, size, size), np.uint8)
    assert (batch.weights.shape, batch.weights.dtype) == ((4, size, size), np.float32)
    assert set(np.unique(batch.labels)) == set(range(NETWORKS[network].labels))
    assert set(np.unique(batch.weights)) <= {0, 1}


@pytest.mark.parametrize("network", ["stage1", "mouth"])
def test_pixels_of_parts_weigh_what_is_asked_for(network):
    plain, weighted = (batches(network, Train(batch=4, part_weight=weight)).make(2) for weight in (1, 2.5))
    np.testing.assert_array_equal(plain.labels, weighted.labels)
    np.testing.assert_array_equal(weighted.weights, plain.weights * np.where(plain.labels > 0, 2.5, 1))
    assert 0 < (plain.labels > 0).mean() < 1


# ---------------------------------------------------------------- samples


def test_stage_1_has_a_sample_for_every_face_parts_or_not():
    faces = [FACES[0], face(9, missing=range(1, 9))]
    assert [sample.face for sample in samples_of("stage1", faces)] == faces


def test_both_sides_of_a_face_are_samples():
    names = [sample.patch.name for sample in samples_of("eyebrow", FACES[:2])]
    assert names == ["left_eyebrow", "right_eyebrow"] * 2


def test_absent_parts_are_skipped():
    faces = [face(1, missing=(2,)), face(2, missing=(2, 4)), face(3, missing=(6, 7))]
    assert [(s.face.name, s.patch.name) for s in samples_of("eye", faces)] == [
        ("face1", "right_eye"),
        ("face3", "left_eye"),
        ("face3", "right_eye"),
    ]
    assert len(samples_of("mouth", faces)) == 3  # one lip is enough


def test_a_part_that_no_face_has_is_a_users_mistake():
    with pytest.raises(InputError, match="2 faces has a label of nose"):
        samples_of("nose", [face(1, missing=(5,)), face(2, missing=(5,))])


@pytest.mark.parametrize("rule, middle", [("median", (13, 12)), ("box", (20, 20))])
def test_the_centre_rule_is_used(rule, middle):
    pixels = np.zeros((40, 40, 12), np.uint8)
    pixels[..., 3] = 1
    for x, y in ((10, 10), (13, 12), (30, 30)):
        pixels[y, x, 3 + 5] = 255
    assert samples_of("nose", [Face("few", pixels)], rule)[0].centre.tolist() == list(middle)


# ---------------------------------------------------------------- augmentation


def draws_seen(draw):
    """Labels of the batch of one sample, four times over."""
    settings = Augment(draw=draw)
    return Batches("nose", samples_of("nose", FACES[:1]), TRAIN, settings, 0).make(0).labels


def test_each_input_has_its_own_draw_by_default():
    assert len({labels.tobytes() for labels in draws_seen("input")}) == 4


def test_one_draw_may_serve_the_whole_batch():
    assert len({labels.tobytes() for labels in draws_seen("batch")}) == 1


def test_a_shared_draw_changes_from_batch_to_batch():
    source = Batches("nose", samples_of("nose", FACES[:1]), TRAIN, Augment(draw="batch"), 0)
    assert len({source.make(step).labels.tobytes() for step in range(4)}) == 4


def test_an_epoch_later_a_sample_is_drawn_anew():
    source = Batches("nose", samples_of("nose", FACES[:1]), Train(batch=1), Augment(), 0)
    assert not same(source.make(0), source.make(1))


def test_the_settings_reach_the_draws():
    still = Augment(rotation=0, scale=(1, 1), shift=0)
    labels = batches("nose", augment=still).make(0).labels
    for label in labels:  # odd rectangles around whole pixels of even patches: half a pixel to one side
        y, x = np.nonzero(label)
        assert (np.ptp(x) + 1, np.ptp(y) + 1) == pytest.approx((17, 25), abs=1)
        np.testing.assert_allclose((np.median(x), np.median(y)), 31.5, atol=0.5)


def test_the_label_rule_reaches_the_labels():
    pixels = FACES[0].pixels.copy()
    pixels[..., 3 + 5] = pixels[..., 3 + 5] // 255 * 60  # a faint nose: 60 of 255, beyond 50
    pixels[..., 3] = 255 - pixels[..., 4:].sum(2)
    faint = Face("faint", pixels)
    sample = samples_of("nose", FACES[:1])[0]._replace(face=faint)
    found = {
        rule: [
            Batches("nose", [sample], Train(batch=1, label_rule=rule), Augment(), 0).make(0).labels.any(),
            validation_batch([sample], Train(label_rule=rule)).labels.any(),
        ]
        for rule in ("argmax", "threshold")
    }
    assert found == {"argmax": [False, False], "threshold": [True, True]}


# ---------------------------------------------------------------- mirrored sides


@pytest.mark.parametrize("network", ["eyebrow", "eye"])
def test_a_right_part_is_trained_on_as_the_left_part_of_the_mirrored_face(network):
    left, right = samples_of(network, FACES[:1])
    mirror_left, mirror_right = samples_of(network, [mirrored(FACES[0])])
    draw = Draw(11, 1.07, (4.2, -6.3))
    for a, b in ((right, mirror_left), (left, mirror_right)):
        for one, other in zip(make_sample(a, draw, "argmax"), make_sample(b, draw, "argmax"), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-3)
    assert not np.allclose(make_sample(left, draw, "argmax")[0], make_sample(right, draw, "argmax")[0], atol=0.1)


def test_in_a_patch_the_other_sides_part_is_background():
    close = np.zeros((80, 80, 12), np.uint8)
    close[..., 3] = 100
    close[30:40, 20:30, 3 + 2] = close[30:40, 50:60, 3 + 4] = 255
    for sample, corner in zip(samples_of("eye", [Face("close", close)]), (2, 1), strict=True):
        labels = validation_batch([sample], TRAIN).labels[0]
        assert labels.sum() == 100, sample.patch.name
        assert labels.any(0).nonzero()[0].mean() == pytest.approx(31.5, abs=corner)


# ---------------------------------------------------------------- validation


@pytest.mark.parametrize("network", list(NETWORKS))
def test_validation_images_are_what_the_pipeline_feeds(network):
    """Of centres as stage 1 gives them: with halves, and beyond the image's border for the patches."""
    faces = [face(1), face(2, shape=(97, 130)), mirrored(face(3))]
    listeners = {name: Listener(entry.labels) for name, entry in NETWORKS.items()}
    pipeline = Pipeline(listeners)
    images = [one.image for one in faces]
    pipeline.locate(images)
    pipeline.label_patches(images, np.stack([part_centres(one.labels()) for one in faces]))
    batch = validation_batch(samples_of(network, faces), TRAIN)
    seen = np.stack(listeners[network].seen)  # (patches, faces, 3, S, S)
    np.testing.assert_allclose(batch.images, seen.swapaxes(0, 1).reshape(batch.images.shape), atol=1e-5)


@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "stage1"])
def test_validation_labels_are_the_true_labels_of_those_pixels(network):
    samples = samples_of(network, [face(4)])
    batch = validation_batch(samples, TRAIN)
    for sample, labels, weights in zip(samples, batch.labels, batch.weights, strict=True):
        truth = sample.face.labels()
        origin = patch_origin(sample.centre, sample.patch.size, truth.shape)
        ids, inside = cut_patch(truth[..., None], origin, sample.patch)
        assert (labels == sample.patch.to_network_labels()[ids[..., 0]]).all()
        assert (weights == inside).all()


def test_validation_is_not_augmented():
    samples = samples_of("mouth", FACES)
    assert same(validation_batch(samples, TRAIN), validation_batch(samples, TRAIN))
    assert len(validation_batch(samples, TRAIN).images) == len(FACES)


def test_all_patches_have_a_network():
    assert {patch.network for patch in PATCHES} == set(NETWORKS) - {"stage1"}

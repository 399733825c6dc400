"""Pipeline: do two stages of networks that are known to be right, mirrored or lost give the map they should?"""

import json
import shutil

import numpy as np
import pytest
from stubs import Listener, coloured_face, grown, knows_parts, knows_places, oracle, usual_layout

from icnn.classes import MIRRORED
from icnn.cli import Signals, StopError
from icnn.data.face_box import SHORTEST
from icnn.data.geometry import Letterbox
from icnn.data.pyramid import Pyramid
from icnn.errors import InputError
from icnn.evaluate.metrics import MEASURES, confusion, f_measures
from icnn.evaluate.scoring import CONDITIONS, HardF, evaluate, fit_pairs, soft_objective, true_centres
from icnn.model.centres import DEFAULT_LAYOUT, part_centres
from icnn.model.modulation import PLAIN, probabilities
from icnn.model.network import icnn_graph
from icnn.model.patches import network_input, patch_origin
from icnn.model.pipeline import PatchLogits, Pipeline, load_pipeline, predictor
from icnn.stages import NETWORKS, PATCHES, STAGE2
from minicnn import Plan
from minicnn.checkpoint import load_tensors, save_tensors

SIZES = [(256, 256), (200, 300), (333, 252), (180, 240), (384, 378)]


def noisy_images(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SIZES]


# ---------------------------------------------------------------- stub networks


def random_network(labels, size, seed):
    """A fixed function of the images without any symmetry: blurred, mixed, shifted, depending on position."""
    rng = np.random.default_rng(seed)
    mix, bias = rng.normal(size=(labels, 3)), rng.normal(size=(labels, size, size))
    shifts = rng.integers(-9, 10, (labels, 2))

    def predict(images):
        smooth = sum(np.roll(images, (dy, dx), (2, 3)) for dy in range(4) for dx in range(4)) / 4
        maps = np.einsum("lc,nchw->lnhw", mix, smooth)
        maps = [np.roll(one, shift, (1, 2)) for one, shift in zip(maps, shifts, strict=True)]
        return np.stack(maps, 1) + bias

    return predict


def symmetric(network, swap):
    """A network made mirror-symmetric; `swap` are its labels as seen in a mirror."""

    def predict(images):
        return network(images) + network(images[..., ::-1])[:, swap, :, ::-1]

    return predict


def random_networks(seed=0):
    """Five random networks; those that see both sides of a face alike are mirror-symmetric."""
    networks = {}
    for number, (name, network) in enumerate(NETWORKS.items()):
        made = random_network(network.labels, network.size, 10 * seed + number)
        if name in ("stage1", "nose", "mouth"):
            made = symmetric(made, MIRRORED if name == "stage1" else np.arange(network.labels))
        networks[name] = made
    return networks


def finds(*pixels):
    """A stage 1 that labels the given (id, x, y) of the square, in every image."""

    def predict(images):
        logits = np.zeros((len(images), 9, 64, 64))
        logits[:, 0] = 1
        for part, x, y in pixels:
            logits[:, part, y, x] = 2
        return logits

    return predict


# ---------------------------------------------------------------- networks that are right


def test_networks_that_know_the_truth_give_it_back():
    faces = [coloured_face(shape) for shape in SIZES]
    for face, labels in zip(faces, oracle().parse([face.image for face in faces]), strict=True):
        assert labels.dtype == np.uint8 and labels.shape == face.labels().shape
        assert (labels == face.labels()).all(), face.name


@pytest.mark.parametrize("middle", [(20, 128), (240, 120), (128, 22), (110, 238), (15, 18)])
def test_faces_cut_by_the_border_are_parsed_as_far_as_they_are_seen(middle):
    face = coloured_face(middle=middle)
    predicted, truth = oracle().parse([face.image])[0], face.labels()
    # sides are told by the half of the square, which a face at the border does not respect
    assert (np.minimum(predicted, MIRRORED[predicted]) == np.minimum(truth, MIRRORED[truth])).all()
    assert 0 < (truth > 0).sum() < (coloured_face().labels() > 0).sum()


def test_images_of_several_sizes_do_not_disturb_each_other():
    images = noisy_images()
    pipeline = Pipeline(random_networks())
    for image, together in zip(images, pipeline.parse(images), strict=True):
        assert (pipeline.parse([image])[0] == together).all()


def test_stage_2_alone_decides_what_is_labelled():
    """A stage 1 that only sees one pixel of each part still gives the whole map; its own labels are dropped."""
    face = coloured_face()
    centres = Letterbox.of(256, 256, 64).to_square(part_centres(face.labels())).round().astype(int)
    crude = finds(*((patch.ids[0], *centre) for patch, centre in zip(PATCHES, centres, strict=True)))
    assert (oracle(stage1=crude).parse([face.image])[0] == face.labels()).all()


# ---------------------------------------------------------------- patches cut once more


@pytest.mark.parametrize("aside", [(9, -7), (-8, 2), (1, 6)])
def test_a_patch_that_misses_its_part_is_cut_once_more_around_it(aside):
    face = coloured_face()
    truth = part_centres(face.labels())
    pipeline = oracle()
    pipeline.recentre = 4
    patches = pipeline.label_patches([face.image], truth[None] + aside)
    for patch, centre, corners, logits in zip(PATCHES, truth, *patches, strict=True):
        corner = patch_origin(centre, patch.size, face.image.shape[:2])
        assert tuple(corners[0]) == corner, patch.name
        expected = pipeline.networks[patch.network](network_input(face.image, corner, patch)[None])
        np.testing.assert_array_equal(logits, expected)


def test_only_patches_that_miss_their_parts_are_cut_once_more():
    faces = [coloured_face(), coloured_face((200, 300)), coloured_face(missing=(5,))]
    centres = np.stack([part_centres(coloured_face(face.image.shape[:2]).labels()) for face in faces])
    centres[:, 2] += (3, -3)
    centres[1, 4] += (0, 12)
    counts = {name: [] for name in STAGE2}

    def counted(name):
        def predict(images):
            counts[name].append(len(images))
            return knows_parts(name)(images)

        return predict

    pipeline = Pipeline({name: counted(name) for name in STAGE2}, recentre=4)
    pipeline.label_patches([face.image for face in faces], centres)
    assert counts == {"eyebrow": [3, 3], "eye": [3, 3], "nose": [3, 1], "mouth": [3]}


# ---------------------------------------------------------------- scales


@pytest.mark.parametrize("shape", [(96, 96), (128, 128), (512, 512), (700, 700), (384, 576), (90, 120)])
def test_a_face_of_another_size_is_parsed_at_the_usual_one(shape):
    wide = shape[1] != shape[0]
    face = grown(coloured_face((256, 384) if wide else (256, 256), (150, 120)), shape)
    seen = []

    def listens(name):
        def predict(images):
            seen.append((images[:, 2] > 0).sum((1, 2)))  # blue: of the nose, the largest part
            return knows_parts(name)(images)

        return predict

    networks = {**oracle().networks, "nose": listens("nose")}
    labels, truth = Pipeline(networks, layout=usual_layout()).parse([face.image])[0], face.labels()
    assert labels.shape == truth.shape
    assert f_measures(confusion(truth, labels))["overall_union"] > 0.8
    usual = (coloured_face().labels() == 5).sum()
    assert 0.6 * usual < seen[0][0] < 2.5 * usual  # other blue parts are in the patch, too
    blind = Pipeline(networks, layout=usual_layout(), side=max(shape))
    assert (blind.parse([face.image])[0] != labels).any(), "at its own scale it would be parsed otherwise"


def test_a_face_of_about_the_usual_size_is_left_as_it_is():
    faces = [grown(coloured_face(middle=(128, 128)), (side, side)) for side in (200, 256, 330)]
    pipeline = Pipeline(oracle().networks, layout=usual_layout())
    centres = np.stack([part_centres(face.labels()) for face in faces])
    labelled = pipeline.label_around([face.image for face in faces], centres)
    for face, points, labels in zip(faces, centres, labelled, strict=True):
        patches = pipeline.label_patches([face.image], points[None])
        (joint,) = pipeline.joint_probabilities(face.labels().shape, patches)
        np.testing.assert_array_equal(labels, joint.argmax(-1))


@pytest.mark.parametrize("middle", [(5, 9), (128, 128), (250, 40)])
def test_a_crop_stays_in_the_photograph(middle):
    """A photograph like those of the training data is taken whole, wherever the face is in it."""
    pipeline, centres = Pipeline({}, layout=usual_layout()), usual_layout() * 256 - 128 + middle
    image = noisy_images()[0]
    (crop,) = pipeline.crop([Pyramid(image)], [pipeline.frame(centres, (256, 256))])
    np.testing.assert_array_equal(crop, image)
    larger = Pyramid(np.full((600, 800, 3), 255, np.uint8))
    (crop,) = pipeline.crop([larger], [pipeline.frame(2 * centres, larger.shape)])
    assert crop.min() == 255


@pytest.mark.parametrize("shape", [(128, 128), (600, 600)])
def test_a_mirrored_face_of_another_size_is_parsed_alike(shape):
    image = grown(coloured_face(middle=(120, 126)), shape).image
    pipeline = Pipeline(oracle().networks, layout=usual_layout())
    labels = pipeline.parse([image])[0]
    assert (pipeline.parse([image[:, ::-1]])[0] == MIRRORED[labels][:, ::-1]).all() and labels.any()


def test_a_photograph_does_not_grow_beyond_measure():
    """A face that is seen in a spot is more likely no face."""
    spot = finds(*((patch.ids[0], 30 + n % 2, 30 + n // 2) for n, patch in enumerate(PATCHES)))
    listeners = {name: Listener(entry.labels) for name, entry in NETWORKS.items()}
    pipeline = Pipeline({**listeners, "stage1": spot})
    assert pipeline.parse([np.zeros((1000, 1500, 3), np.uint8)])[0].shape == (1000, 1500)
    assert pipeline.frame(np.full((6, 2), 7.0), (1500, 1500)).length == pytest.approx(SHORTEST)


# ---------------------------------------------------------------- mirrors


@pytest.fixture
def as_it_comes(monkeypatch):
    """No photograph is resampled, however large the face is that random networks see in it."""
    monkeypatch.setattr("icnn.model.pipeline._ABOUT", (0, np.inf))


@pytest.mark.usefixtures("as_it_comes")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("recentre", [0, 4])
def test_parsing_a_mirrored_image_mirrors_the_parse(seed, recentre):
    images = noisy_images(seed)
    pairs = {"eyebrow": (1.2, -0.4), "mouth": (0.8, 0.3)}
    pipeline = Pipeline(random_networks(seed), pairs, recentre=recentre)
    plain = pipeline.parse(images)
    seen = pipeline.parse([image[:, ::-1] for image in images])
    for image, labels, mirrored in zip(images, plain, seen, strict=True):
        assert set(np.unique(labels)) == set(range(9)), "a map that could go wrong anywhere"
        assert (mirrored == MIRRORED[labels][:, ::-1]).all(), image.shape


def test_every_patch_is_looked_at_once():
    listeners = {name: Listener(entry.labels) for name, entry in NETWORKS.items()}
    Pipeline(listeners).parse(noisy_images()[:2])
    assert [len(listeners[name].seen) for name in NETWORKS] == [1, 2, 2, 1, 1]


def test_warming_up_runs_every_network():
    listeners = {name: Listener(entry.labels) for name, entry in NETWORKS.items()}
    Pipeline(listeners).warm_up()
    for name, entry in NETWORKS.items():
        assert [images.shape for images in listeners[name].seen] == [(1, 3, entry.size, entry.size)]


@pytest.mark.parametrize("shape", SIZES)
def test_parsing_a_mirrored_face_mirrors_the_parse(shape):
    image = coloured_face(shape).image
    labels = oracle().parse([image])[0]
    assert (oracle().parse([image[:, ::-1]])[0] == MIRRORED[labels][:, ::-1]).all()
    assert labels.any()


def test_centres_mirror_for_every_even_width():
    """Medians are halves, and scaling them back rounds: no patch may move by a pixel for it."""
    for width in range(130, 400, 18):
        pair = [np.zeros((160, width, 3), np.uint8)] * 1
        for x in (7, 20, 31, 40):
            here = Pipeline({**random_networks(), "stage1": finds((5, x, 30), (5, x + 1, 30))})
            there = Pipeline({**random_networks(), "stage1": finds((5, 63 - x, 30), (5, 62 - x, 30))})
            a, b = (pipeline.locate(pair).centres[0, 4] for pipeline in (here, there))
            assert patch_origin(b, 64, (160, width))[0] == width - 64 - patch_origin(a, 64, (160, width))[0]


# ---------------------------------------------------------------- stage 1


@pytest.mark.parametrize("shape", SIZES)
def test_centres_are_scaled_back_to_the_photograph(shape):
    """Pixel x of the square covers [x, x + 1) / 64 of the longer side; its centre is half a pixel in."""
    located = Pipeline({"stage1": finds((5, 20, 33), (2, 25, 30), (2, 26, 30))}).locate(
        [np.zeros((*shape, 3), np.uint8)]
    )
    per_pixel = max(shape) / 64
    left, top = (max(shape) - shape[1]) / 2, (max(shape) - shape[0]) / 2
    np.testing.assert_allclose(located.centres[0, 4], (20.5 * per_pixel - left - 0.5, 33.5 * per_pixel - top - 0.5))
    np.testing.assert_allclose(located.centres[0, 1], (26 * per_pixel - left - 0.5, 30.5 * per_pixel - top - 0.5))


def test_centres_of_a_known_face_are_right_to_half_a_pixel_of_the_square():
    faces = [coloured_face(shape) for shape in SIZES]
    located = oracle().locate([face.image for face in faces])
    assert located.found.all()
    for face, centres in zip(faces, located.centres, strict=True):
        true = part_centres(face.labels())
        # but for the mouth, whose colours blend in the small square
        np.testing.assert_allclose(centres[:5], true[:5], atol=max(face.pixels.shape) / 64 / 2)


def test_what_stage_1_says_of_the_padding_is_ignored():
    def sees_noses_everywhere(images):
        return np.broadcast_to((np.arange(9) == 5)[:, None, None] * 1.0, (len(images), 9, 64, 64))

    shapes = [(200, 300), (333, 251)]
    located = Pipeline({"stage1": sees_noses_everywhere}).locate([np.zeros((*shape, 3), np.uint8) for shape in shapes])
    assert located.labels[0].any(1).sum() == 42 and located.labels[0].any(0).all()  # 64 x 42 2/3
    assert located.labels[1].any(0).sum() == 48 and located.labels[1].any(1).all()  # 48.2 x 64
    for (height, width), centres in zip(shapes, located.centres, strict=True):
        np.testing.assert_allclose(centres[4], ((width - 1) / 2, (height - 1) / 2))


def test_a_part_that_is_not_found_is_placed_by_the_others():
    def misses_the_nose(images):
        logits = knows_places(images)
        logits[:, 5] = -1
        return logits

    face = coloured_face()
    pipeline = oracle(stage1=misses_the_nose)
    located = pipeline.locate([face.image])
    assert located.found[0].tolist() == [True, True, True, True, False, True]
    assert np.abs(located.centres[0, 4] - part_centres(face.labels())[4]).max() < 12
    assert (pipeline.parse([face.image])[0] == face.labels()).all()


@pytest.mark.parametrize("shape", [(256, 256), (200, 300)])
def test_with_nothing_found_the_usual_layout_is_used(shape):
    layout = np.add(DEFAULT_LAYOUT, (0.05, -0.03))
    located = Pipeline({"stage1": finds()}, layout=layout).locate([np.zeros((*shape, 3), np.uint8)])
    assert not located.found.any()
    side = max(shape)
    margin = np.array([side - shape[1], side - shape[0]]) / 2
    np.testing.assert_allclose(located.centres[0], layout * side - margin - 0.5)


# ---------------------------------------------------------------- stage 2


def test_each_network_sees_its_patches_right_sides_mirrored():
    images = noisy_images()[:2]
    centres = np.random.default_rng(1).uniform(-20, 320, (2, 6, 2))
    listeners = {name: Listener(network.labels) for name, network in NETWORKS.items()}
    patches = Pipeline(listeners).label_patches(images, centres)
    heard = {name: iter(listener.seen) for name, listener in listeners.items()}
    for number, patch in enumerate(PATCHES):
        inputs = next(heard[patch.network])
        for n, image in enumerate(images):
            origin = patch_origin(centres[n, number], patch.size, image.shape[:2])
            assert tuple(patches.origins[number][n]) == origin
            assert (inputs[n] == network_input(image, origin, patch)).all()
    assert not listeners["stage1"].seen


def test_modulation_changes_the_background_of_its_own_network_alone():
    rng = np.random.default_rng(2)
    pairs = {"eye": (0.5, 0.7), "mouth": (2.0, -0.3)}
    pipeline = Pipeline({}, pairs)
    for patch in PATCHES:
        logits = rng.normal(size=(3, len(patch.ids) + 1, patch.size, patch.size))
        expected = logits.copy()
        beta, beta0 = pairs.get(patch.network, (1, 0))
        expected[:, 0] = beta * logits[:, 0] + beta0
        ids = np.array([0, *patch.ids])[expected.argmax(1)]
        assert (pipeline.labels_of_patch(patch, logits) == ids).all()
        assert patch.network not in pairs or (expected.argmax(1) != logits.argmax(1)).any()


def patch_logits(seed, images=2):
    """Random logits of all six patches, at random places of 150 x 170 images."""
    rng = np.random.default_rng(seed)
    origins = [rng.integers(-40, 120, (images, 2)) for _ in PATCHES]
    logits = [rng.normal(size=(images, len(patch.ids) + 1, patch.size, patch.size)) for patch in PATCHES]
    return PatchLogits(origins, logits)


def pasted_by_hand(shape, patches, n, pairs, among=PATCHES):
    """Full map of image n, pixel by pixel over the patches."""
    labels, best = np.zeros(shape, int), np.zeros(shape)
    for number, patch in enumerate(PATCHES):
        if patch not in among:
            continue
        z = patches.logits[number][n].copy()
        beta, beta0 = pairs.get(patch.network, PLAIN)
        z[0] = beta * z[0] + beta0
        p = np.exp(z) / np.exp(z).sum(0)
        left, top = patches.origins[number][n]
        for row, column in np.ndindex(patch.size, patch.size):
            y, x = top + row, left + (patch.size - 1 - column if patch.mirrored else column)
            label = p[:, row, column].argmax()
            inside = 0 <= y < shape[0] and 0 <= x < shape[1]
            if label and inside and p[label, row, column] > best[y, x]:
                best[y, x], labels[y, x] = p[label, row, column], patch.ids[label - 1]
    return labels


def test_pasting_is_what_it_is_by_hand_with_modulation():
    patches, pairs = patch_logits(3), {"nose": (1.5, -0.2), "eyebrow": (0.7, 0.4)}
    maps = Pipeline({}, pairs).joint_probabilities((150, 170), patches)
    for n, labels in enumerate(joint.argmax(-1) for joint in maps):
        assert (labels == pasted_by_hand((150, 170), patches, n, pairs)).all()
        assert set(np.unique(labels)) == set(range(9))


# ---------------------------------------------------------------- plans as networks


class ReusingPlan:
    """A plan as the pipeline knows it: few images at a time, one buffer for all results."""

    batch = 3

    def __init__(self):
        self.sizes, self._buffer = [], np.zeros((3, 2, 4, 4), np.float32)

    def forward(self, images):
        assert 1 <= len(images) <= self.batch
        self.sizes.append(len(images))
        self._buffer[: len(images)] = images[:, :2] + 1
        return self._buffer[: len(images)]

    def download(self, array):
        return array.copy()


@pytest.mark.parametrize("count, sizes", [(1, [1]), (3, [3]), (7, [3, 3, 1])])
def test_a_plan_is_fed_a_batch_at_a_time_and_its_results_are_copied(count, sizes):
    plan, images = ReusingPlan(), np.random.default_rng(4).normal(size=(count, 3, 4, 4)).astype(np.float32)
    assert (predictor(plan)(images) == images[:, :2] + 1).all()
    assert plan.sizes == sizes


LAYOUT = np.arange(12.0).reshape(6, 2) / 16


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A RUN folder whose five networks have first weights, and pairs and a layout of their own."""
    run = tmp_path_factory.mktemp("run")
    (run / "weights").mkdir()
    for seed, (name, network) in enumerate(NETWORKS.items()):
        plan = Plan(icnn_graph(network.labels, network.size), 1, seed=seed, threads=1)
        about = {"layout": json.dumps(LAYOUT.tolist()), "side": 300} if name == "stage1" else {}
        plan.save(run / "weights" / f"{name}.safetensors", beta=1 + seed, beta0=-seed, **about)
    return run


def test_weights_are_loaded_with_their_pairs_and_layout(saved):
    image = np.random.default_rng(12).normal(size=(1, 3, 64, 64)).astype(np.float32)
    expected = Plan(icnn_graph(2, 64), 1, seed=2, threads=1).forward(image)
    for folder in (saved, saved / "weights"):
        pipeline = load_pipeline(folder, "numpy", 1, threads=1)
        assert pipeline.pairs == {"eyebrow": (2, -1), "eye": (3, -2), "nose": (4, -3), "mouth": (5, -4)}
        assert (pipeline.side, pipeline.recentre) == (300, 0)
        np.testing.assert_array_equal(pipeline.layout, LAYOUT)
        assert (pipeline.networks["eye"](image) == expected).all()


def test_weights_without_pairs_or_layout_leave_the_defaults(saved, tmp_path):
    for name in NETWORKS:
        tensors, metadata = load_tensors(saved / "weights" / f"{name}.safetensors")
        save_tensors(tmp_path / f"{name}.safetensors", tensors, {"preset": metadata["preset"]})
    pipeline = load_pipeline(tmp_path, "numpy", 1, threads=1)
    assert pipeline.pairs == dict.fromkeys(STAGE2, PLAIN)
    np.testing.assert_array_equal(pipeline.layout, DEFAULT_LAYOUT)


def test_weights_are_used_as_their_pairs_were_fitted(saved, tmp_path):
    folder = shutil.copytree(saved / "weights", tmp_path / "weights")
    for name in NETWORKS:
        with_metadata(recentre="4.5")(folder / f"{name}.safetensors")
    assert load_pipeline(folder, "numpy", 1, threads=1).recentre == 4.5


def test_weights_of_earlier_versions_load(saved, tmp_path):
    """They say whether logits were averaged when their pairs were fitted, which none does any more."""
    folder = shutil.copytree(saved / "weights", tmp_path / "weights")
    for name in NETWORKS:
        with_metadata(average="False")(folder / f"{name}.safetensors")
    assert load_pipeline(folder, "numpy", 1, threads=1).pairs["eye"] == (3, -2)


def no_weights(path):
    path.unlink()


def half_of_the_file(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_text(path):
    path.write_text("weights", encoding="utf-8")


def sealed(path):
    save_tensors(path, *load_tensors(path), sealed=True)


def one_bit_changed(path):
    sealed(path)
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)


def another_pair(path):
    sealed(path)
    data = path.read_bytes()
    beta = load_tensors(path)[1]["beta"]
    path.write_bytes(data.replace(f'"beta":"{beta}"'.encode(), f'"beta":"{"9" * len(beta)}"'.encode()))


def another_format(path):
    sealed(path)
    path.write_bytes(path.read_bytes().replace(b'"format":"1"', b'"format":"2"'))


def another_networks_weights(path):
    path.write_bytes((path.parent / "mouth.safetensors").read_bytes())


def with_metadata(**changes):
    def damage(path):
        tensors, metadata = load_tensors(path)
        save_tensors(path, tensors, {key: value for key, value in (metadata | changes).items() if value})

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        no_weights,
        half_of_the_file,
        a_text,
        one_bit_changed,
        another_pair,
        another_format,
        another_networks_weights,
        pytest.param(with_metadata(preset="mine"), id="unknown preset"),
        pytest.param(with_metadata(preset=""), id="no preset"),
        pytest.param(with_metadata(beta="much"), id="beta in words"),
        pytest.param(with_metadata(layout="[[0.5, 0.5]]"), id="layout of one part"),
        pytest.param(with_metadata(layout="here"), id="layout in words"),
        pytest.param(with_metadata(layout="{}"), id="layout of nothing"),
        pytest.param(with_metadata(layout=str([["NaN", 0.5]] * 6).replace("'", "")), id="layout that is nowhere"),
        pytest.param(with_metadata(layout="1" * 400), id="layout beyond all numbers"),
        pytest.param(with_metadata(layout="[" * 9999), id="layout without an end"),
        pytest.param(with_metadata(beta="nan"), id="beta that is no number"),
        pytest.param(with_metadata(card="[]"), id="card of nothing"),
        pytest.param(with_metadata(card='{"terms": 3}'), id="card with a number for its terms"),
        pytest.param(with_metadata(side="0"), id="photographs without extent"),
        pytest.param(with_metadata(network="eye"), id="a network of the same shape"),
    ],
)
@pytest.mark.parametrize("name", ["stage1", "nose"])
def test_weights_that_cannot_be_used_are_named_in_one_line(damage, name, saved, tmp_path):
    folder = shutil.copytree(saved / "weights", tmp_path / "weights")
    damage(folder / f"{name}.safetensors")
    with pytest.raises(InputError) as caught:
        load_pipeline(folder, "numpy", 1, threads=1)
    text = str(caught.value)
    assert text.startswith(f"{folder / name}.safetensors: ") and "\n" not in text


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: expected a folder with weights"):
        load_pipeline(tmp_path / "nowhere", "numpy", 1)
    with pytest.raises(InputError, match=r"stage1\.safetensors"):
        load_pipeline(tmp_path, "numpy", 1)


# ---------------------------------------------------------------- evaluation


def run(pipeline, faces, batch=2):
    return evaluate(pipeline, faces, batch)


def test_networks_that_know_the_truth_score_1():
    result = run(oracle(), [coloured_face(shape) for shape in SIZES])
    for condition in CONDITIONS:
        scores = f_measures(result.confusion[condition])
        assert scores == dict.fromkeys(MEASURES, 1.0)
        assert result.per_image[condition] == [1.0] * len(SIZES)


def test_the_summary_has_the_contracts_schema():
    missing = [coloured_face(missing=(6, 7, 8)), coloured_face((200, 300), missing=(6, 7, 8))]
    summary = run(oracle(), missing).summary("tuning")
    assert list(summary) == ["split", "images", "crops"]
    assert (summary["split"], summary["images"]) == ("tuning", 2)
    assert list(summary["crops"]) == ["predicted", "ground_truth"]
    for scores in summary["crops"].values():
        assert list(scores) == [
            *("eyebrow", "eye", "nose", "upper_lip", "inner_mouth", "lower_lip"),
            *("mouth", "overall_micro", "overall_union"),
        ]
        assert [name for name, f in scores.items() if f is None] == [
            "upper_lip",
            "inner_mouth",
            "lower_lip",
            "mouth",
        ]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_details_can_be_written_as_json():
    details = run(oracle(), [coloured_face(missing=(5,))]).details()
    assert json.loads(json.dumps(details, allow_nan=False)) == details
    assert details["centres"]["nose"] == {"median": None, "p95": None, "not_found": 1}
    assert details["centres"]["left_eye"]["not_found"] == 0


def test_a_lost_part_costs_the_predicted_condition_alone():
    """Stage 1 puts the nose far off; patches around the true centres do not mind."""

    def loses_the_nose(images):
        logits = knows_places(images)
        logits[:, 5] = -1
        logits[:, 5, 2, 2] = 99
        return logits

    result = run(oracle(stage1=loses_the_nose), [coloured_face()])
    predicted, actual = (f_measures(result.confusion[condition]) for condition in CONDITIONS)
    assert (predicted["nose"], actual["nose"]) == (0.0, 1.0)
    assert predicted["eye"] == actual["eye"] == 1.0
    assert result.per_image["predicted"][0] == predicted["overall_micro"] < 1 == result.per_image["ground_truth"][0]


def test_stage_1s_own_labels_do_not_count():
    blind = {name: Listener(NETWORKS[name].labels) for name in STAGE2}
    result = run(oracle(**blind), [coloured_face()])
    for condition in CONDITIONS:
        assert f_measures(result.confusion[condition])["overall_union"] == 0.0


def test_the_ground_truth_condition_cuts_around_the_true_centres():
    face = coloured_face((200, 300))
    networks = {name: Listener(network.labels) for name, network in NETWORKS.items()}
    pipeline = Pipeline({**networks, "stage1": finds((5, 20, 33))})
    run(pipeline, [face])
    nose, centres = PATCHES[4], part_centres(face.labels())
    box = pipeline.frame(centres, (200, 300))
    (crop,) = pipeline.crop([Pyramid(face.image)], [box])
    origin = patch_origin(box.to_crop(centres, 256, 140)[4], 64, (256, 256))
    predicted, actual = networks["nose"].seen
    assert (actual[0] == network_input(crop, origin, nose)).all()
    assert not (predicted == actual).all()


def test_centre_errors_are_distances_in_photograph_pixels():
    face = coloured_face((200, 300), missing=(1,))
    result = run(Pipeline({**oracle().networks, "stage1": finds((5, 20, 33))}), [face, face], batch=1)
    found = np.array([20.5 * 300 / 64 - 0.5, 33.5 * 300 / 64 - 50 - 0.5])
    x, y = found - part_centres(face.labels())[4]
    np.testing.assert_allclose(result.centre_errors[:, 4], np.hypot(x, y))
    assert np.isnan(result.centre_errors[:, 0]).all(), "no truth, no error"
    assert result.centre_errors.shape == (2, 6)


def test_fallbacks_are_counted_for_each_part():
    result = run(Pipeline({**oracle().networks, "stage1": finds((5, 20, 33))}), [coloured_face()] * 3)
    assert result.not_found.tolist() == [3, 3, 3, 3, 0, 3]


@pytest.mark.parametrize("batch", [1, 2, 50])
def test_scores_do_not_depend_on_the_batch(batch):
    faces = [coloured_face(shape) for shape in SIZES[:3]]
    pipeline = Pipeline(random_networks())
    result = run(pipeline, faces, batch)
    for condition in CONDITIONS:
        assert (result.confusion[condition] == run(pipeline, faces, 3).confusion[condition]).all()
    assert result.names == [face.name for face in faces]


def test_pixels_of_images_of_all_sizes_are_pooled():
    faces = [coloured_face(shape) for shape in SIZES[:2]]
    pipeline = Pipeline(random_networks())
    result = run(pipeline, faces)
    parsed = pipeline.parse([face.image for face in faces])
    by_hand = sum(confusion(face.labels(), labels) for face, labels in zip(faces, parsed, strict=True))
    assert (result.confusion["predicted"] == by_hand).all()
    assert by_hand.sum() == 256 * 256 + 200 * 300


def test_a_part_that_the_truth_lacks_is_placed_by_the_layout():
    pipeline = oracle()
    for shape in SIZES:
        face = coloured_face(shape)
        without = coloured_face(shape, missing=(5,))
        centres = true_centres(without.labels(), part_centres(without.labels()), pipeline)
        known = [0, 1, 2, 3, 5]
        assert (centres[known] == part_centres(face.labels())[known]).all()
        assert np.abs(centres[4] - part_centres(face.labels())[4]).max() < 12
    empty = coloured_face((200, 300), missing=range(1, 9)).labels()
    nothing = true_centres(empty, part_centres(empty), pipeline)
    np.testing.assert_allclose(nothing, pipeline.layout * 300 - (0, 50) - 0.5)


def test_a_signal_stops_evaluation():
    signals = Signals()
    signals.number = 2
    with pytest.raises(StopError):
        evaluate(oracle(), [coloured_face()], 1, signals.tracked("evaluate"))


# ---------------------------------------------------------------- fitting the modulation on full images


@pytest.mark.parametrize("network", STAGE2)
def test_hard_f_is_that_of_the_networks_own_patches_pasted_by_hand(network):
    patches, pair = patch_logits(5), (0.8, 0.3)
    truths = list(np.random.default_rng(6).integers(0, 9, (2, 150, 170), dtype=np.uint8))
    own = [patch for patch in PATCHES if patch.network == network]
    ids = [part for patch in own for part in patch.ids]
    matrix = sum(
        confusion(
            np.where(np.isin(truth, ids), truth, 0),
            pasted_by_hand(truth.shape, patches, n, {network: pair}, own),
        )
        for n, truth in enumerate(truths)
    )
    expected = np.mean([f_measures(matrix)[measure] for measure in NETWORKS[network].measures])
    assert HardF(network, truths, patches)(pair) == pytest.approx(expected)
    assert 0.01 < expected < 0.9


def test_hard_f_without_any_such_part_is_0():
    patches = patch_logits(5)
    patches.logits[4][:, 0] = 99
    truths = [np.zeros((150, 170), np.uint8)] * 2
    assert HardF("nose", truths, patches)(PLAIN) == 0.0


@pytest.mark.parametrize("network", STAGE2)
def test_the_smooth_objective_sharpened_is_hard_f_where_patches_do_not_overlap(network):
    patches = patch_logits(7)
    for number, patch in enumerate(PATCHES):  # left parts cut by the left border, right parts by the right one
        patches.origins[number][:] = (106, 30) if patch.mirrored else (-14, 40)
    # a side's parts in its own half, so that no patch sees the other side's
    truths = list(np.random.default_rng(8).integers(0, 9, (2, 150, 170), dtype=np.uint8))
    for truth in truths:
        truth[:, :85][np.isin(truth[:, :85], (3, 4))] = 0
        truth[:, 85:][np.isin(truth[:, 85:], (1, 2))] = 0
    for pair in (PLAIN, (1.3, -0.4)):
        soft = soft_objective(network, truths, patches)(pair, 1e7)[0]
        assert soft == pytest.approx(HardF(network, truths, patches)(pair), abs=1e-4)


def distorted_oracle(**shifts):
    """The oracle, but with the background of some networks raised by a constant and all logits uncertain."""
    rng = np.random.default_rng(9)

    def distort(network, shift):
        def predict(images):
            logits = network(images) * 0.3 + rng.normal(size=images[:, :1].shape)
            logits[:, 0] += shift
            return logits

        return predict

    networks = oracle().networks
    return Pipeline({**networks, **{name: distort(networks[name], shift) for name, shift in shifts.items()}})


@pytest.mark.parametrize("method, shift", [("lbfgsb", 4.0), ("lbfgsb", -4.0), ("neldermead", -4.0)])
def test_fitting_sets_the_pairs_and_undoes_a_shifted_background(method, shift):
    faces = [coloured_face(shape) for shape in SIZES[:2]]
    pipeline = distorted_oracle(eye=shift, mouth=shift)
    fits = fit_pairs(pipeline, faces, 2, method)
    assert pipeline.pairs == {name: fit.pair for name, fit in fits.items()}
    assert list(fits) == list(STAGE2)
    for name in ("eye", "mouth"):
        assert fits[name].after > fits[name].before + 0.1, name
    for name in ("eyebrow", "nose"):  # nothing to gain
        assert fits[name] == (PLAIN, 1.0, 1.0)


@pytest.mark.parametrize("method", ["lbfgsb", "neldermead", "none"])
def test_fitting_never_lowers_the_hard_f(method):
    faces = [coloured_face(shape) for shape in SIZES[1:3]]
    pipeline = Pipeline(random_networks(1))
    images, truths = [face.image for face in faces], [face.labels() for face in faces]
    patches = pipeline.label_patches(images, pipeline.locate(images).centres)
    fits = fit_pairs(pipeline, faces, 1, method)
    for name, fit in fits.items():
        objective = HardF(name, truths, patches)
        assert objective(PLAIN) == fit.before <= fit.after == objective(fit.pair)
        assert method != "none" or fit.pair == PLAIN


def test_fitted_pairs_are_what_parsing_then_uses():
    face = coloured_face()
    pipeline = oracle()
    pipeline.pairs["nose"] = (1.0, 99.0)
    labels = pipeline.parse([face.image])[0]
    assert (labels == np.where(face.labels() == 5, 0, face.labels())).all()


def test_fitting_does_not_build_on_earlier_pairs():
    faces = [coloured_face()]
    fresh, used = Pipeline(random_networks(1)), Pipeline(random_networks(1), {"nose": (3.0, 2.0)})
    assert fit_pairs(fresh, faces, 1, "lbfgsb") == fit_pairs(used, faces, 1, "lbfgsb")


def test_probabilities_of_a_patch_sum_to_1():
    logits = patch_logits(11).logits[5]
    np.testing.assert_allclose(probabilities(logits, (0.3, 2)).sum(1), 1)

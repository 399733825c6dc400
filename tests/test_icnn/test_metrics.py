"""Metrics: is F what Smith et al. and the paper's Table 1 mean by it?"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from icnn.classes import PARTS
from icnn.evaluate.metrics import MEASURES, MERGED, bootstrap, confusion, f_measures, f_of_counts

BACKGROUND, LEFT_BROW, LEFT_EYE, RIGHT_BROW, RIGHT_EYE, NOSE, UPPER, INNER, LOWER = range(9)


def counted(*entries):
    """(9, 9) confusion matrix from (true id, predicted id, pixels)."""
    matrix = np.zeros((len(PARTS), len(PARTS)), np.int64)
    for truth, prediction, pixels in entries:
        matrix[truth, prediction] = pixels
    return matrix


#: True id, predicted id, pixels; the F-measures beside it are worked by hand as TP / FP / FN.
WORKED = counted(
    (BACKGROUND, BACKGROUND, 1000),
    (BACKGROUND, LEFT_BROW, 10),
    (LEFT_BROW, LEFT_BROW, 40),
    (LEFT_BROW, RIGHT_BROW, 5),
    (RIGHT_BROW, BACKGROUND, 15),
    (LEFT_EYE, LEFT_EYE, 20),
    (RIGHT_EYE, RIGHT_EYE, 30),
    (NOSE, NOSE, 90),
    (NOSE, UPPER, 10),
    (UPPER, UPPER, 30),
    (UPPER, INNER, 20),
    (LOWER, LOWER, 25),
    (LOWER, BACKGROUND, 25),
)


@pytest.mark.parametrize(
    "measure, f",
    [
        ("eyebrow", 90 / 115),  # 45 / 10 / 15
        ("eye", 1.0),  # 50 / 0 / 0
        ("nose", 180 / 190),  # 90 / 0 / 10
        ("upper_lip", 60 / 90),  # 30 / 10 / 20
        ("inner_mouth", 0.0),  # 0 / 20 / 0
        ("lower_lip", 50 / 75),  # 25 / 0 / 25
        ("mouth", 150 / 185),  # 75 / 10 / 25: upper lip called inner mouth is still mouth
        ("overall_micro", 480 / 590),  # 240 / 40 / 70
        ("overall_union", 540 / 590),  # 270 / 10 / 40: the nose called lip is still face
    ],
)
def test_f_equals_the_table_worked_by_hand(measure, f):
    assert f_measures(WORKED)[measure] == pytest.approx(f, abs=1e-12)


def test_measures_are_named_and_ordered_as_in_the_table():
    expected = ("eyebrow", "eye", "nose", "upper_lip", "inner_mouth", "lower_lip", "mouth")
    assert tuple(f_measures(WORKED)) == MEASURES == (*expected, "overall_micro", "overall_union")


def test_a_part_on_the_wrong_side_of_the_face_counts_as_right():
    swapped = counted((LEFT_EYE, RIGHT_EYE, 7), (RIGHT_BROW, LEFT_BROW, 3))
    scores = f_measures(swapped)
    assert (scores["eye"], scores["eyebrow"], scores["overall_micro"]) == (1.0, 1.0, 1.0)


def test_a_nose_pixel_called_lip_is_two_errors_in_micro_and_none_in_union():
    scores = f_measures(counted((NOSE, NOSE, 9), (NOSE, UPPER, 1)))
    assert scores["overall_micro"] == 18 / 20
    assert scores["overall_union"] == 1.0


def test_the_mouth_is_one_region():
    scores = f_measures(counted((UPPER, INNER, 4), (INNER, LOWER, 5), (LOWER, UPPER, 6)))
    assert (scores["upper_lip"], scores["mouth"]) == (0.0, 1.0)


def test_f_without_true_and_predicted_pixels_is_none():
    scores = f_measures(counted((BACKGROUND, BACKGROUND, 99), (NOSE, NOSE, 1)))
    assert [name for name in MEASURES if scores[name] is not None] == [
        "nose",
        "overall_micro",
        "overall_union",
    ]


@pytest.mark.parametrize("entry", [(NOSE, BACKGROUND, 3), (BACKGROUND, NOSE, 3)])
def test_f_is_zero_where_only_one_side_has_pixels(entry):
    assert f_measures(counted(entry))["nose"] == 0.0


def test_scores_are_plain_floats_that_json_can_hold():
    assert {type(f) for f in f_measures(WORKED).values()} == {float}


def test_f_of_counts_is_the_harmonic_mean_of_precision_and_recall():
    precision, recall = 6 / (6 + 2), 6 / (6 + 4)
    assert f_of_counts(6, 2, 4) == pytest.approx(2 * precision * recall / (precision + recall))


def test_confusion_has_truth_in_rows():
    matrix = confusion(np.array([[NOSE, NOSE]]), np.array([[NOSE, LOWER]]))
    assert (matrix == counted((NOSE, NOSE, 1), (NOSE, LOWER, 1))).all()


def test_confusion_of_bytes_does_not_wrap_around():
    ids = np.full((3, 3), LOWER, np.uint8)
    assert confusion(ids, ids)[LOWER, LOWER] == 9


def test_confusion_refuses_maps_of_two_sizes():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        confusion(np.zeros((2, 3), int), np.zeros((3, 2), int))


def test_pixels_are_pooled_over_images_not_scores_averaged():
    large, small = np.full((10, 10), NOSE), np.full((1, 1), NOSE)
    missed = np.zeros((1, 1), int)
    pooled = confusion(large, large) + confusion(small, missed)
    assert f_measures(pooled)["nose"] == 200 / 201


def per_pixel_scores(truth, prediction):
    """F of every measure, one pixel at a time."""
    regions = {**{name: [set(ids)] for name, ids in MERGED.items()}, "mouth": [{UPPER, INNER, LOWER}]}
    regions["overall_micro"] = [set(ids) for ids in MERGED.values()]
    regions["overall_union"] = [set(range(1, 9))]
    scores = {}
    for name, sets in regions.items():
        tp = fp = fn = 0
        for ids in sets:
            for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
                tp += t in ids and p in ids
                fp += t not in ids and p in ids
                fn += t in ids and p not in ids
        scores[name] = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None
    return scores


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.uint8, (2, 4, 5), elements=st.integers(0, 8)),
    st.sampled_from([np.uint8, np.int32, np.int64]),
)
def test_scores_equal_a_loop_over_pixels(maps, dtype):
    truth, prediction = maps.astype(dtype)
    assert f_measures(confusion(truth, prediction)) == pytest.approx(per_pixel_scores(truth, prediction))


# ---------------------------------------------------------------- intervals


def test_images_that_are_alike_leave_no_interval():
    matrix = np.eye(9, dtype=np.int64) * 10
    matrix[5, 6] = 4
    scores, found = f_measures(matrix), bootstrap([matrix] * 7, np.random.default_rng(0), 50)
    assert found == {name: pytest.approx([f, f]) for name, f in scores.items()}


def test_an_interval_holds_what_a_normal_approximation_says():
    """Of one part whose counts vary independently: the ratio's deviation by the delta method."""
    rng, matrices = np.random.default_rng(1), []
    for tp, miss in zip(rng.integers(50, 150, 200), rng.integers(0, 60, 200), strict=True):
        matrix = np.zeros((9, 9), np.int64)
        matrix[5, 5], matrix[5, 0] = tp, miss
        matrices.append(matrix)
    counts = np.array([(2 * m[5, 5], 2 * m[5, 5] + m[5, 0]) for m in matrices], float)
    f = counts[:, 0].sum() / counts[:, 1].sum()
    deviation = np.std(counts[:, 0] - f * counts[:, 1]) / np.sqrt(200) / counts[:, 1].mean()
    low, high = bootstrap(matrices, np.random.default_rng(2))["nose"]
    assert low == pytest.approx(f - 1.96 * deviation, abs=0.3 * deviation)
    assert high == pytest.approx(f + 1.96 * deviation, abs=0.3 * deviation)


def test_without_pixels_there_is_no_interval():
    matrix = np.zeros((9, 9), np.int64)
    matrix[5, 5] = 3
    assert bootstrap([matrix], np.random.default_rng(0), 20)["eye"] is None
    assert set(bootstrap([], np.random.default_rng(0)).values()) == {None}

"""Does the page of a training that goes on say how far it is, and show what the networks see?"""

import numpy as np
import pytest
from PIL import Image

from icnn.classes import COLOURS
from icnn.config import load_config
from icnn.stages import NETWORKS
from icnn.synthetic.faces import synthetic_faces
from icnn.train.batches import Batch, samples_of, validation_batch
from icnn.train.live import duration, save_crops, seconds_left, shown_crops, write_progress
from icnn.train.run_folder import Run


@pytest.fixture
def run(tmp_path):
    config = load_config(None, ["train.steps=100", "train.batch=10", "eye.train.steps=300"])
    the_run = Run.new(tmp_path / "run")
    the_run.open(config)
    return the_run, config


def entry(network, step, rate, **more):
    return {"network": network, "step": step, "images_per_second": rate, "validation_f": 0.5, **more}


def test_time_left_goes_with_steps_and_multiplications(run):
    _, config = run
    assert seconds_left([], config) is None
    last = [entry("mouth", 60, 20.0)]
    assert seconds_left(last, config) == pytest.approx(40 * 10 / 20)
    nose = [entry("nose", 60, 40.0)]
    # the mouth's planes are (80 / 64)^2 as large; with 4 labels its last two convolutions are wider, too
    assert seconds_left(nose, config) > 40 * 10 / 40 + 100 * 10 / 40 * (80 / 64) ** 2
    eye = [entry("eye", 60, 40.0)]
    # all three networks of two labels take the same time a step, and the eye has 240 steps to go, the nose 100
    assert seconds_left(eye, config) - seconds_left(nose, config) == pytest.approx((240 + 60) * 10 / 40)


def test_time_left_knows_early_stops_and_recent_paces(run):
    _, config = run
    stopped = [entry("stage1", 20, 50.0), entry("mouth", 60, 20.0)]
    slowed = [entry("mouth", n, 20.0) for n in (10, 20, 30)] + [entry("mouth", n, 10.0) for n in (40, 50, 60, 70, 80)]
    assert seconds_left(stopped, config) < seconds_left([entry("eyebrow", 60, 20.0)], config)
    assert seconds_left(slowed, config) == pytest.approx(20 * 10 / 10)
    assert seconds_left([entry("mouth", 100, 20.0)], config) == 0
    assert seconds_left([entry("mouth", 60, None)], config) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "1 minute"), (130, "2 minutes"), (3600, "1 hour 0 minutes"), (7290, "2 hours 2 minutes")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_crops_are_those_of_the_network_the_labels_and_the_truth(run):
    the_run, config = run
    train, _ = config.for_network("mouth")
    validation = validation_batch(samples_of("mouth", synthetic_faces(5, 0, "tuning"), "median"), train)
    chosen = shown_crops(validation, 3)
    np.testing.assert_array_equal(chosen, [0, 2, 4])
    np.testing.assert_array_equal(shown_crops(validation, 99), range(5))
    few = Batch(*(array[chosen] for array in validation))
    labels = few.labels[::-1]
    save_crops(the_run, "mouth", 70, few, labels)
    with Image.open(the_run.folder / "validation" / "mouth-000070.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape == (3 * 80, 3 * 80, 3)
    ids = np.array((0, *NETWORKS["mouth"].ids))
    for column in range(3):
        image, got, truth = (pixels[row * 80 : (row + 1) * 80, column * 80 : (column + 1) * 80] for row in range(3))
        seen = few.images[column].transpose(1, 2, 0)
        assert np.corrcoef(image.ravel(), seen.ravel())[0, 1] > 0.95
        np.testing.assert_array_equal(got, COLOURS[ids[labels[column]]])
        np.testing.assert_array_equal(truth, COLOURS[ids[few.labels[column]]])


def test_the_page_reloads_and_has_the_newest_crops(run):
    the_run, config = run
    blank = Batch(np.zeros((1, 3, 64, 64), np.float32), np.zeros((1, 64, 64), np.uint8), np.ones((1, 64, 64)))
    for step in (20, 1000):
        save_crops(the_run, "eye", step, blank, np.zeros((1, 64, 64), int))
        the_run.log(entry("eye", step, 50.0, loss=0.2, validation_loss=0.25, lr=0.01))
    write_progress(the_run, config)
    page = (the_run.folder / "report.html").read_text("utf-8")
    assert '<meta http-equiv="refresh"' in page
    assert "eye, step 1,000" in page and "eye, step 20<" not in page
    assert page.count("data:image/png") == 1
    assert "About" in page and "left at this pace" in page
    assert "1,000 of 300" in page and "0 of 100" in page
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_page_before_any_validation_says_no_time(run):
    the_run, config = run
    write_progress(the_run, config)
    page = (the_run.folder / "report.html").read_text("utf-8")
    assert "left at this pace" not in page and "nan" not in page

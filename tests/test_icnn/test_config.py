"""Are settings read as written, and mistakes refused with the nearest known name?"""

import pytest

from icnn.config import Config, config_text, load_config, recipes, save_config
from icnn.errors import InputError


def write(tmp_path, text):
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def test_the_default_recipe_and_both_shipped_files_load():
    assert load_config().evaluate.split == "testing"
    assert load_config("helen").evaluate.split == "tuning"
    assert load_config("paper").network.preset == "paper"
    released = load_config("released")
    assert released.network.preset == "released"
    assert released.train.momentum == 0.8


def test_a_file_overrides_defaults_and_set_overrides_the_file(tmp_path):
    path = write(tmp_path, "seed = 3\n[train]\nsteps = 50\nlr = 1\n")
    config = load_config(path, ["train.steps=7", "augment.scale=[0.5, 2]", "evaluate.split=testing"])
    assert (config.seed, config.train.steps, config.train.lr) == (3, 7, 1.0)
    assert config.augment.scale == (0.5, 2.0)
    assert config.evaluate.split == "testing"
    assert config.train.momentum == Config().train.momentum


def test_settings_of_one_network_reach_only_that_network(tmp_path):
    config = load_config(write(tmp_path, "[train]\nlr = 0.1\n[eye.train]\nlr = 0.2\n[eye.augment]\nshift = 1\n"))
    assert config.for_network("eye")[0].lr == 0.2
    assert config.for_network("eye")[1].shift == 1.0
    assert config.for_network("nose")[0].lr == 0.1
    assert config.for_network("nose")[1].shift == Config().augment.shift


def test_set_of_a_general_key_also_replaces_what_the_file_says_for_single_networks(tmp_path):
    path = write(tmp_path, "[eye.train]\nlr = 0.2\nsteps = 9\n")
    config = load_config(path, ["train.lr=0.5"])
    assert config.for_network("eye")[0].lr == 0.5
    assert config.for_network("eye")[0].steps == 9
    assert load_config(path, ["eye.train.lr=0.7"]).for_network("eye")[0].lr == 0.7


def test_saved_settings_load_as_they_were(tmp_path):
    path = write(tmp_path, 'data = "somewhere"\nthreads = 2\n[mouth.train]\nsteps = 3\n[modulation]\nmethod="none"\n')
    config = load_config(path)
    save_config(config, tmp_path / "saved.toml")
    assert load_config(tmp_path / "saved.toml") == config
    assert "[mouth.train]" in config_text(config)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.step=3", ["train.step", "train.steps"]),
        ("trian.lr=3", ["trian.lr", "train.lr"]),
        ("eye.train.momentun=0.1", ["eye.train.momentum"]),
        ("eye.seed=1", ["eye.seed", "eye."]),
        ("train.steps", ["KEY=VALUE"]),
        ("train.steps=0", ["train.steps", "1 to"]),
        ("train.steps=many", ["train.steps", "whole number", "'many'"]),
        ("train.steps=2.5", ["train.steps", "whole number"]),
        ("train.nesterov=1", ["train.nesterov", "true or false"]),
        ("train.steps=true", ["train.steps", "True"]),
        ("train.momentum=1", ["train.momentum"]),
        ("augment.scale=1.0", ["augment.scale", "list of 2"]),
        ("augment.scale=[1.1, 0.9]", ["augment.scale", "smaller"]),
        ("train.keep=worst", ["train.keep", "best, last"]),
        ("evaluate.split=validation", ["tuning"]),
        ("train.lr=nan", ["train.lr"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(assignment, words):
    with pytest.raises(InputError) as error:
        load_config(None, [assignment])
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("a = [", "TOML"),
        ("[train]\nlearning_rate = 1\n", "unknown"),
        (f"[train]\nlr = {'1' * 400}\n", "400 digits"),
        (f"[train]\nsteps = {'1' * 5000}\n", "TOML"),
        (f"data = {'[' * 9999}", "TOML"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path, content, word):
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=word) as error:
        load_config(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_binary_file_are_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.toml"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.toml"):
        load_config(tmp_path / "binary.toml")


def test_files_of_earlier_versions_load_where_they_mean_the_same(tmp_path):
    assert load_config(write(tmp_path, "[evaluate]\naverage = false\nbatch = 7\n")).evaluate.batch == 7
    old = write(tmp_path, "[train]\naverage = 0.5\n[eye.train]\naverage = 0.25\n")
    assert [load_config(old).for_network(name)[0].ema for name in ("nose", "eye")] == [0.5, 0.25]
    with pytest.raises(InputError, match=r"unknown setting 'evaluate\.average'"):
        load_config(write(tmp_path, "[evaluate]\naverage = true\n"))


def test_a_recipe_is_named_or_a_file(tmp_path, monkeypatch):
    """A file of the name of a recipe does not hide it: who means the file writes ./helen or helen.toml."""
    assert recipes() == ["default", "helen", "paper", "released"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helen").write_text("seed = 77\n")
    assert load_config("helen").seed != 77 and load_config("./helen").seed == 77
    with pytest.raises(InputError, match="celeb: expected a TOML file or one of default, helen, paper"):
        load_config("celeb")

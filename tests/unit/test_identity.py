import hashlib
import json

import pytest

from fairpriv import identity
from fairpriv.identity import cell_id, content_hash, outcome_config

CONFIG = {
    "seed": 0,
    "sweep": "quickstart",
    "retry": "failed",
    "threads": None,
    "model": {"name": "mlp", "hidden": [64, 32]},
    "dataset": {"name": "adult", "source": {"folder": "/here/adult", "files": ["adult.data"]}},
    "game": {"world": 0, "alpha": 1.0, "property": None},
    "trainer": {"max_epochs": 5, "accelerator": "cpu", "devices": 1, "precision": 32, "enable_progress_bar": True},
    "logger": {"name": "wandb"},
    "paths": {"root": "/here"},
    "hydra": {"job": {"num": 3}},
}
DIGESTS = {"dataset.source": "0123"}


def changed(key, value):
    config = json.loads(json.dumps(CONFIG))
    *sections, last = key.split(".")
    node = config
    for section in sections:
        node = node[section]
    node[last] = value
    return config


def test_hash_is_sha256_of_sorted_compact_json():
    expected = hashlib.sha256(b'{"\\"a\\"":[1,true,null,"x",0.5],"\\"b\\"":{}}').hexdigest()[:16]
    assert content_hash({"b": {}, "a": [1, True, None, "x", 0.5]}) == expected


def test_id_is_the_same_in_every_process_and_version():
    # Finished cells are found again by it: whoever changes this value makes every existing cell run again.
    assert cell_id(CONFIG, DIGESTS) == "67e6d182b3ff9236"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logger", None),
        ("paths.root", "/there"),
        ("hydra.job.num", 4),
        ("sweep", None),
        ("retry", "all"),
        ("threads", 2),
        ("trainer.accelerator", "gpu"),
        ("trainer.devices", 8),
        ("trainer.enable_progress_bar", False),
        ("trainer.num_nodes", 2),
        ("trainer.logger", False),
        ("dataset.source.folder", "/there/adult"),
        ("game.alpha", 1),
    ],
)
def test_what_cannot_change_the_outcome_leaves_the_id(key, value):
    assert cell_id(changed(key, value), DIGESTS) == cell_id(CONFIG, DIGESTS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("model.hidden", [32, 64]),
        ("model.hidden", [64, 32, 1]),
        ("game.alpha", 0.999),
        ("game.world", True),
        ("game.property", "None"),
        ("game.new", None),
        ("trainer.precision", 64),
        ("trainer.deterministic", True),
        ("trainer.limit_train_batches", 2),
        ("dataset.name", "logger"),
        ("seed", "0"),
    ],
)
def test_any_other_change_changes_the_id(key, value):
    assert cell_id(changed(key, value), DIGESTS) != cell_id(CONFIG, DIGESTS)


def test_an_analysis_tells_cells_of_language_models_apart_and_its_absence_does_not():
    language = CONFIG | {"dimensions": {"privacy": {}}}
    some = {"analysis": {"prompts": 64}}
    assert cell_id(language | {"analysis": None}, DIGESTS) == cell_id(language, DIGESTS)
    assert cell_id(language | some, DIGESTS) != cell_id(language, DIGESTS)
    assert cell_id(CONFIG | some, DIGESTS) == cell_id(CONFIG, DIGESTS)


def test_order_of_keys_does_not_matter():
    assert cell_id(dict(reversed(CONFIG.items())), DIGESTS) == cell_id(CONFIG, DIGESTS)


def test_changed_data_changes_the_id():
    assert cell_id(CONFIG, {"dataset.source": "4567"}) != cell_id(CONFIG, DIGESTS)


def test_outcome_version_changes_the_id(monkeypatch):
    before = cell_id(CONFIG, DIGESTS)
    monkeypatch.setattr(identity, "OUTCOME_VERSION", identity.OUTCOME_VERSION + 1)
    assert cell_id(CONFIG, DIGESTS) != before


def test_digest_of_a_missing_key_is_an_error():
    with pytest.raises(KeyError, match=r"dataset\.sauce"):
        cell_id(CONFIG, {"dataset.sauce": "0123"})


def test_config_is_left_as_it_was():
    before = json.dumps(CONFIG)
    cell_id(CONFIG, DIGESTS)
    outcome_config(CONFIG)
    assert json.dumps(CONFIG) == before


def test_keys_of_different_type_stay_apart():
    assert content_hash({1: "a"}) != content_hash({"1": "a"})
    assert content_hash({1: "a", "b": 2}) == content_hash({"b": 2.0, 1.0: "a"})


def test_only_plain_data_is_hashed():
    with pytest.raises(TypeError):
        content_hash({"a": object()})

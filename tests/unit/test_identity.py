import dataclasses
import functools
import hashlib
import importlib
import json
import sys
from pathlib import Path

import pytest
import yaml
from hydra.utils import get_object

from fairpriv import identity
from fairpriv.config.schema import class_definition
from fairpriv.config.settings import EvaluationSettings
from fairpriv.identity import (
    code_of,
    content_hash,
    contents,
    declared,
    derived_seed,
    described,
    outcome,
    outcome_config,
)

CONF = Path(__file__).parents[2] / "conf"

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


def cell_id(config, digests):
    return content_hash(outcome(config, digests))


def changed(key, value, config=CONFIG):
    config = json.loads(json.dumps(config))
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


def test_an_engine_tells_cells_apart_by_what_can_change_an_answer_and_its_absence_does_not():
    language = {
        "task": "language_model",
        "model": {"name": "lm"},
        "dimensions": {"privacy": {}},
        "evaluation": {"seed": 0},
    }
    server = {"_target_": "fairpriv.language_models.engines.server.ServerEngine", "command": ["a"], "concurrency": 4}

    def asked(**engine):
        return cell_id(language | {"evaluation": {"seed": 0, "engine": server | engine}}, {})

    assert cell_id(language | {"evaluation": {"seed": 0, "engine": None}}, {}) == cell_id(language, {})
    assert cell_id(language, {}) != asked() == asked(concurrency=8) != asked(command=["b"])


def test_an_analysis_tells_cells_of_language_models_apart_and_its_absence_does_not():
    language = CONFIG | {"dimensions": {"privacy": {}}}
    some = {"analysis": {"prompts": 64}}
    assert cell_id(language | {"analysis": None}, DIGESTS) == cell_id(language, DIGESTS)
    assert cell_id(language | some, DIGESTS) != cell_id(language, DIGESTS)
    assert cell_id(CONFIG | some, DIGESTS) == cell_id(CONFIG, DIGESTS)


@pytest.mark.parametrize(
    ("key", "nothing", "something"),
    [
        ("utility.tasks", [], ["boolq"]),
        ("utility.first", None, 50),
        ("dataset.canaries", None, {"count": 8}),
        ("game.poison", 0, 0.05),
        ("evaluation.engine", None, {"url": "there"}),
    ],
)
def test_what_is_asked_for_counts_and_that_it_is_not_does_not(key, nothing, something):
    section, name = key.split(".")
    model = (
        {"game": {"alpha": 1.0}} if section == "game" else {"dimensions": {"privacy": {}}, "evaluation": {"seed": 0}}
    )
    base = CONFIG | model | ({"utility": {"tasks": ["arc"]}} if key == "utility.first" else {})

    def with_it(value):
        return cell_id(base | {section: {**base.get(section, {}), name: value}}, DIGESTS)

    assert with_it(nothing) == cell_id(base, DIGESTS) != with_it(something)


def test_a_key_that_came_later_tells_cells_apart_and_its_null_does_not():
    tuning = {"_target_": "fairpriv.classifiers.defenses.fair_finetune.FairFineTuning", "penalty": "validation"}

    def defended(**more):
        return cell_id(CONFIG | {"defense": {"estimator": tuning | more}}, DIGESTS)

    assert defended() == defended(grid_epochs=None) != defended(grid_epochs=2)


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


def targets(node, place):
    """Every target of a config with its place, in which names of dimensions and splits do not count."""
    if isinstance(node, list):
        return [found for item in node for found in targets(item, place)]
    if not isinstance(node, dict):
        return []
    here = [(place, node["_target_"])] if "_target_" in node else []
    return here + [found for key, value in node.items() for found in targets(value, key)]


def shipped():
    """Place and target of all that stands in a shipped config."""
    found = set()
    for file in CONF.glob("*/*.yaml"):
        if file.parent.name not in ("hydra", "logger"):
            found |= set(targets(yaml.safe_load(file.read_text()), file.parent.name))
    return sorted(found)


def test_two_targets_of_a_place_never_share_a_kind():
    named = {}
    for place, target in shipped():
        named.setdefault((place, declared(target)[0]), set()).add(target)
    assert [names for names in named.values() if len(names) > 1] == []
    assert len(named) > 40


def test_classes_of_ours_have_a_kind_and_others_their_path():
    for _, target in shipped():
        kind = declared(target)[0]
        assert (kind != target) == target.startswith("fairpriv."), target
        assert kind == target or "." not in kind


CLASSES = {target for _, target in shipped() if target.startswith("fairpriv.") and class_definition(target)}


@pytest.mark.parametrize("target", sorted(CLASSES))
def test_what_is_read_from_the_source_is_what_the_class_declares(target):
    found = get_object(target)
    kind, without, later = declared(target)
    assert kind == vars(found)["kind"]
    fields = dataclasses.fields(found) if dataclasses.is_dataclass(found) else ()
    marked = {field.name for field in fields if field.metadata.get("outcome") is False}
    assert without == marked | set(getattr(found, "not_outcome", ()))
    assert later == {field.name for field in fields if field.metadata.get("outcome") == "unless None"}


TUNED = CONFIG | {
    "dimensions": {"privacy": {"_target_": "fairpriv.language_models.dimensions.dimension.Dimension"}},
    "evaluation": {"batch_size": 16, "seed": 0},
    "model": {"_target_": "fairpriv.language_models.models.pretrained.PretrainedLM", "path": "gpt2", "cache": "/here"},
    "defense": {
        "_target_": "fairpriv.language_models.defenses.spin.Spin",
        "ratio": 0.01,
        "memory_budget": None,
        "after": {
            "_target_": "fairpriv.language_models.defenses.supervised_tuning.SupervisedTuning",
            "micro_batch_size": 4,
            "save": False,
            "adapter": {"_target_": "peft.LoraConfig", "r": 8},
        },
    },
}


def test_nothing_that_is_hashed_names_a_module_of_ours():
    text = json.dumps(outcome(TUNED, {}))
    assert "_target_" not in text
    assert "fairpriv" not in text
    assert outcome(TUNED, {})["config"]["defense"]["after"] == {
        "_kind_": "supervised_tuning",
        "adapter": {"_kind_": "peft.LoraConfig", "r": 8},
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("defense.memory_budget", 10**9),
        ("defense.after.micro_batch_size", 1),
        ("defense.after.save", True),
        ("evaluation.batch_size", 4),
        ("model.cache", "/there"),
        ("game.alpha", 0.5),
    ],
)
def test_what_a_class_declares_not_to_count_leaves_the_id(key, value):
    assert cell_id(changed(key, value, TUNED), {}) == cell_id(TUNED, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("defense.ratio", 0.02),
        ("defense.after.adapter.r", 4),
        ("defense.after.adapter._target_", "peft.LoHaConfig"),
        ("model.path", "gpt3"),
        ("evaluation.seed", 1),
    ],
)
def test_nested_values_and_foreign_targets_count(key, value):
    assert cell_id(changed(key, value, TUNED), {}) != cell_id(TUNED, {})


def test_the_kind_of_experiment_says_which_sections_count():
    classifier = changed("game.alpha", 0.5, TUNED | {"task": "classifier"})
    assert cell_id(classifier, {}) != cell_id(TUNED | {"task": "classifier"}, {})
    model = changed("game.alpha", 0.5, TUNED | {"task": "language_model"})
    assert cell_id(model, {}) == cell_id(TUNED | {"task": "language_model"}, {})


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Writes modules of a package of a user's."""
    monkeypatch.syspath_prepend(str(tmp_path))
    package = f"house_{tmp_path.name.replace('-', '_')}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()

    def write(**modules):
        for name, text in modules.items():
            (tmp_path / package / f"{name}.py").write_text(text)
        return package

    yield write
    sys.modules.pop(package, None)


PART = "from dataclasses import dataclass, field\nfrom typing import ClassVar\n\n"
PART += "@dataclass\nclass Part:\n    kind: ClassVar[str] = 'part'\n    a: int = 1\n"
PART += "    b: int = field(default=1, metadata={'outcome': False})\n"
PART += "    c: int | None = field(default=None, metadata={'outcome': 'unless None'})\n"


def test_a_class_that_moves_keeps_its_id(house):
    package = house(cellar=PART, attic=PART.replace("Part", "Piece"), door="from .attic import Piece\n")

    def moved(target, **values):
        return cell_id({"defense": {"_target_": f"{package}.{target}", "a": 1, "b": 1} | values}, {})

    assert moved("cellar.Part") == moved("attic.Piece") == moved("door.Piece") == moved("attic.Piece", b=2)
    assert moved("cellar.Part", a=2) != moved("cellar.Part")
    assert moved("cellar.Part", c=None) == moved("cellar.Part") != moved("cellar.Part", c=1)


def test_what_a_plain_class_lists_does_not_count(house):
    text = "from typing import ClassVar\n\nclass Part:\n    not_outcome: ClassVar[tuple[str, ...]] = ('cache',)\n"
    package = house(cellar=text)
    assert declared(f"{package}.cellar.Part") == (f"{package}.cellar.Part", {"cache"}, frozenset())


def test_a_derived_seed_is_31_bits_of_the_hash_of_its_parts():
    text = '[7,"victim"]'
    assert derived_seed(7, "victim") == int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) % 2147483648


def test_a_subclass_inherits_no_kind_but_what_does_not_count(house):
    text = "from .cellar import Part\n\nclass Other(Part):\n    pass\n\nclass Named(Part):\n    kind = 'named'\n"
    package = house(cellar=PART, attic=text)
    assert declared(f"{package}.attic.Other") == (f"{package}.attic.Other", {"b"}, {"c"})
    assert declared(f"{package}.attic.Named") == ("named", {"b"}, {"c"})


def test_a_field_called_kind_and_what_is_no_class_name_none(house):
    text = "from dataclasses import dataclass\n\n@dataclass\nclass Part:\n    kind: str = 'x'\n\ndef make(): ...\n"
    package = house(cellar=text)
    for name in ("cellar.Part", "cellar.make", "cellar.missing", "nowhere.Part"):
        assert declared(f"{package}.{name}") == (f"{package}.{name}", frozenset(), frozenset())


def test_the_code_of_a_users_class_is_that_of_its_bases_and_of_what_they_import(tmp_path, monkeypatch):
    def code(name="Part", init=True, **changed):
        files = {
            "part": "import json\nimport barn.whole\nfrom .shared import FACTOR\nfrom .base import Base\n\n"
            "class Part(Base): ...\nclass Other(Base): ...\n",
            "base": "class Base: ...\n",
            "shared": "from . import deep\nFACTOR = deep.FACTOR\n",
            "deep": "FACTOR = 1\n",
            "whole": "FACTOR = 1\n",
            "unread": "",
        }
        folder = tmp_path / f"at{len(list(tmp_path.iterdir()))}"
        (folder / "barn").mkdir(parents=True)
        for file, text in {**({"__init__": ""} if init else {}), **files, **changed}.items():
            (folder / "barn" / f"{file}.py").write_text(text)
        for loaded in [one for one in sys.modules if one.partition(".")[0] == "barn"]:
            monkeypatch.delitem(sys.modules, loaded)
        with monkeypatch.context() as path:
            path.syspath_prepend(str(folder))
            return code_of(getattr(importlib.import_module("barn.part"), name))

    unnamed = [code(init=False), code(init=False, base="class Base:\n    more = 1\n")]
    assert unnamed[0] != unnamed[1]
    first = code()
    assert [name for name, _ in first] == ["barn.base.Base", "barn.part.Part"]
    assert code() == first == code(unread="LATER = 1")
    for changed in (
        {"base": "class Base:\n    more = 1\n"},
        {"deep": "FACTOR = 2\n"},
        {"whole": "FACTOR = 2\n"},
        {"name": "Other"},
    ):
        assert code(**changed) != first


def test_classes_of_ours_and_of_libraries_have_no_code_of_a_users():
    from torch import nn

    assert code_of(nn.Linear, dict, type(None), EvaluationSettings, print) == []
    assert [name for name, _ in code_of(type("Mine", (nn.Linear,), {"__module__": "nowhere"}))] == ["nowhere.Mine"]


def test_an_object_is_described_by_its_kind_and_its_public_attributes():
    import torch

    class Mine:
        def __init__(self, **settings):
            self.__dict__ |= settings

    def alike(one, other):
        return json.dumps(described(one)) == json.dumps(described(other))

    assert alike(
        Mine(a=1, b=[{8, 0}], _c=3), Mine(a=1, b=[{0, 8}], _c=4)
    )  # sets that list these in the order of coming
    assert described(frozenset({"b", "a"})) == ["a", "b"]
    assert alike(functools.partial(max, key=abs), functools.partial(max, key=abs))
    different = [
        *(1, "1", None, [1], {"a": 1}, {"a": 2}, Mine(a=1), Mine(a=2), Mine(a=Mine(a=1)), Mine, max, torch.float16),
        *(functools.partial(max, 1), functools.partial(max, 2), functools.partial(min, 1)),
        *(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0]), EvaluationSettings(), EvaluationSettings(prompts=3)),
    ]
    assert len({json.dumps(described(one), sort_keys=True) for one in different}) == len(different)
    ring = Mine(a=1)
    ring.ring = ring
    assert alike(ring, ring)


def test_the_contents_of_inputs_are_found_in_what_was_hashed():
    digests = {"model.path": "one", "dataset.source": "two"}
    config = {"task": "language_model", "model": {"path": "x", "dtype": "y"}, "dataset": {"source": {"files": ["z"]}}}
    assert contents(outcome(config, digests)) == digests
    assert contents({}) == {}

import ast
import textwrap
from typing import Any, Literal

import pytest

from fairpriv.config import schema
from fairpriv.config.schema import check, forget_sources, nearest, parameters
from fairpriv.errors import InputError

CONFIG = {
    "task": "classifier",
    "seed": 0,
    "retry": "failed",
    "threads": 1,
    "sweep": None,
    "dimensions": {},
    "model": {"_target_": "fairpriv.classifiers.nets.classifier.MLP", "name": "mlp", "hidden": [8], "dropout": 0.0},
    "dataset": {
        "_target_": "fairpriv.classifiers.data.tabular.TabularDataset",
        "name": "people",
        "source": {"_target_": "fairpriv.data.sources.Files", "files": ["people.csv"]},
        "target": "hired",
        "sensitive": "sex",
    },
    "defense": {"_target_": "fairpriv.undefended.Undefended", "name": "none"},
    "game": {"alpha": 1.0},
    "training": {"epochs": 1, "batch_size": 128, "lr": 0.003, "weight_decay": 0.0},
    "trainer": {"_target_": "lightning.Trainer", "accelerator": "cpu"},
    "logger": {},
    "paths": {"root": "outputs", "data": "data"},
}


def changed(key: str, value: Any) -> dict[str, Any]:
    def copy(node: dict[str, Any], parts: list[str]) -> dict[str, Any]:
        inner = copy(node.get(parts[0], {}), parts[1:]) if len(parts) > 1 else value
        return {**node, parts[0]: inner}

    return copy(CONFIG, key.split("."))


def refusal(key: str, value: Any) -> str:
    with pytest.raises(InputError) as error:
        check(changed(key, value))
    return str(error.value)


def test_a_right_config_passes():
    check(CONFIG)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("sede", "seed"),
        ("game.alhpa", "game.alpha"),
        ("training.epcohs", "training.epochs"),
        ("paths.rot", "paths.root"),
        ("model.hiden", "model.hidden"),
        ("dataset.sensitiv", "dataset.sensitive"),
        ("dataset.source.fils", "dataset.source.files"),
        ("trainer.acelerator", "trainer.accelerator"),
    ],
)
def test_a_misspelt_key_is_named_in_full_with_the_nearest_right_one(key, near):
    assert refusal(key, 1) == f"unknown key {key} (did you mean {near!r}?)"


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("model.hidden", ["a"], "list[int] or null"),
        ("model.hidden", 8, "list[int] or null"),
        ("model.dropout", "much", "float"),
        ("model.dropout", True, "float"),
        ("dataset.max_categories", 2.5, "int or null"),
        ("dataset.include_sensitive", "yes", "bool"),
        ("dataset.missing", "ignore", "one of error, drop, category"),
        ("dataset.groups", ["m", "f"], "dict"),
        ("dataset.source.files", "people.csv", "list[str]"),
        ("defense.name", 3, "str"),
    ],
)
def test_a_wrong_type_is_named_with_the_right_one(key, value, wanted):
    assert refusal(key, value).startswith(f"{key}={value!r}: must be {wanted}")


@pytest.mark.parametrize(
    ("key", "value"), [("model.dropout", 1), ("dataset.max_categories", None), ("dataset.positive_above", 50_000)]
)
def test_an_integer_is_a_float_and_null_is_allowed_where_it_is_said(key, value):
    check(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("retry", "sometimes"),
        ("threads", 0),
        ("threads", -1),
        ("training.epochs", -1),
        ("training.batch_size", 0),
        ("training.epochs", 0),
        ("training.lr", -0.1),
        ("training.lr", 0.0),
        ("training.lr", float("nan")),
        ("training.weight_decay", float("inf")),
        ("paths.root", ""),
        ("seed", -1),
        ("seed", 2**63),
        ("game.alpha", 2.0),
        ("game.alpha", float("nan")),
        ("game.world", 2),
        ("game.adversary_share", 1.0),
        ("game.test_share", 0.95),
        ("game.query_share", 0.0),
        ("game.rows", 0),
        ("game.min_cell", -1),
        ("trainer.max_epochs", 3),
        ("trainer.devices", 0),
        ("trainer.devices", -2),
        ("trainer.devices", []),
        ("trainer.devices", "two"),
        ("trainer.devices", "0,1"),
        ("trainer.devices", 1.5),
        ("trainer.num_nodes", 0),
        ("trainer.num_nodes", -1),
        ("attack.kl", None),
        ("dimensions.utility", None),
        ("dimensions.utility", 1),
        ("dataset._partial_", "true"),
    ],
)
def test_a_value_out_of_range_is_named(key, value):
    assert key in refusal(key, value)


TEXTS = {"_target_": "fairpriv.language_models.data.pairs.Pairs", "name": "pairs"}
LANGUAGE_MODEL = {"_target_": "fairpriv.language_models.models.pretrained.PretrainedLM", "name": "small", "path": "x"}
TUNING = {"_target_": "fairpriv.language_models.defenses.supervised_tuning.SupervisedTuning", "name": "full"}
PENALTY = {"_target_": "fairpriv.classifiers.defenses.reweighting.Reweighting", "name": "reweighting"}
DIMENSION = "fairpriv.language_models.dimensions.dimension.Dimension"
PROBE = "fairpriv.classifiers.dimensions.robustness.Robustness"
TEXT_CELL = {key: value for key, value in CONFIG.items() if key not in ("game", "training")} | {
    "task": "language_model",
    "model": LANGUAGE_MODEL,
    "dataset": TEXTS,
    "defense": TUNING,
    "dimensions": {"privacy": {}},
}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            CONFIG | {"defense": TUNING},
            "defense=full is for task=language_model, and dataset=people of task=classifier: "
            r"choose a defense of that task \(fairpriv ls defense\), or dataset=pairs$",
        ),
        (
            CONFIG | {"model": LANGUAGE_MODEL},
            "model=small is for task=language_model, and dataset=people of task=class",
        ),
        (
            CONFIG | {"dataset": TEXTS},
            "dataset=pairs is for task=language_model, and the config asks for task=classifier: "
            r"choose a dataset of that task, such as dataset=adult \(fairpriv ls dataset\)$",
        ),
        (
            TEXT_CELL | {"defense": PENALTY},
            "defense=reweighting is for task=classifier, and dataset=pairs of task=lang",
        ),
        (
            TEXT_CELL | {"model": CONFIG["model"]},
            "model=mlp is for task=classifier, and dataset=pairs of task=language_m",
        ),
        (TEXT_CELL | {"dimensions": {}}, r"dimension=\[\]: dataset=pairs needs some"),
        (
            CONFIG | {"dimensions": {"privacy": {"_target_": DIMENSION}}},
            "dimension=privacy is for task=language_model, and dataset=people of task=classifier",
        ),
        (
            TEXT_CELL | {"dimensions": {"robustness": {"_target_": PROBE, "name": "robustness"}}},
            "dimension=robustness is for task=classifier, and dataset=pairs of task=language_model",
        ),
    ],
)
def test_parts_of_another_task_are_refused_from_their_source(config, message):
    with pytest.raises(InputError, match=message):
        check(config)
    check(config, missing_allowed=True)  # as `validate` does, which checks options one by one


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIG | {"judge": {}}, "judge is of task=language_model, not of task=classifier"),
        (TEXT_CELL | {"attack": {"kl": {}}}, "attack is of task=classifier, not of task=language_model"),
        (CONFIG | {"task": "clasifier"}, "task=clasifier: must be one of classifier, language_model"),
    ],
)
def test_sections_of_another_task_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        check(config)


@pytest.mark.parametrize(
    ("key", "value", "nothing", "message"),
    [
        ("accumulate_grad_batches", 2, 1, "=2: .* defense.batch_size pairs, in parts of defense.micro_batch_size"),
        ("gradient_clip_val", 0.5, 0, "=0.5: .* clipped by defense.clip"),
    ],
)
def test_what_lightning_does_not_do_in_a_language_model_s_steps_is_refused(key, value, nothing, message):
    def with_(config, value):
        return config | {"trainer": {**config["trainer"], key: value}}

    with pytest.raises(InputError, match=rf"trainer\.{key}{message}"):
        check(with_(TEXT_CELL, value))
    check(with_(TEXT_CELL, nothing))
    check(with_(CONFIG, value))


def test_what_fits_every_task_is_not_refused():
    check(TEXT_CELL)
    check(TEXT_CELL | {"defense": CONFIG["defense"]})
    check(CONFIG | {"defense": PENALTY})


def test_a_property_group_is_one_of_those_that_the_config_lists():
    config = changed("dataset.groups", {"sex": ["m", "f"]})
    with pytest.raises(InputError, match=r"game\.property=x: dataset\.groups\.sex lists m, f"):
        check(config | {"game": {"property": "x"}})
    check(config | {"game": {"property": "f"}})
    check(changed("game.property", "x"))  # which groups there are shows in the data


@pytest.mark.parametrize("group", ["model", "dataset", "defense", "trainer"])
@pytest.mark.parametrize("node", [{}, None, [1], {"name": "x"}])
def test_a_group_needs_a_target(group, node):
    assert refusal(group, node).startswith(f"{group}._target_ has no value")


@pytest.mark.parametrize("group", ["model", "dataset", "defense"])
def test_a_group_needs_a_name(group):
    assert refusal(group, {k: v for k, v in CONFIG[group].items() if k != "name"}).startswith(f"{group}.name ")


def test_a_missing_value_is_named_unless_it_is_allowed():
    assert refusal("dataset.target", "???") == "dataset.target has no value: set it with dataset.target=VALUE"
    check(changed("dataset.target", "???"), missing_allowed=True)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("os.system", "os has no Python source to read parameters from: wrap it in a class of your own"),
        ("builtins.eval", "builtins has no Python source"),
        ("hydra.utils.instantiate", "is no model, which is a class with forward or network or load"),
        ("subprocess.getoutput", "is no model, which is a class with forward or network or load"),
        ("fairpriv.classifiers.attacks.kl.KL", "is no model, which is a class with forward or network or load"),
        (
            "ligthning.Trainer",
            "there is no module ligthning, neither installed nor in the --config-dir folder (did",
        ),
        ("a b.C", "there is no module a b"),
        ("fairpriv.run.Path", "is no model, which is a class with forward or network or load"),
    ],
)
def test_a_part_is_a_class_of_its_kind_with_a_source(target, why):
    assert f"model._target_={target}: {why}" in refusal("model._target_", target)


@pytest.mark.parametrize(
    "target",
    [
        "fairpriv.classifiers.nets.classifier.MLPP",
        "fairpriv.classifiers.nets.clasifier.MLP",
        "fairpriv",
        "fairpriv.classifiers.data.tabular.load",  # a method without its class
        "torch.nn.RelU",
        "torch.os.system",  # what torch itself imports is no target
        "fairpriv.run.instantiate",
    ],
)
def test_a_target_that_is_not_there_is_refused(target):
    assert refusal("model._target_", target).startswith(f"model._target_={target}: there is no class or function")


@pytest.mark.parametrize(
    "target",
    [
        "fairpriv.classifiers.nets.classifier.MLPP",
        "fairpriv.classifiers.nets.clasifier.MLP",
        "fairpriv.classifiers.networks.MLP",
        "fairpriv.classifiers.nets.MLP",
    ],
)
def test_the_nearest_target_is_named(target):
    assert refusal("model._target_", target).endswith(" (did you mean 'fairpriv.classifiers.nets.classifier.MLP'?)")


def test_a_seed_out_of_range_is_named_in_the_task_s_sections_too():
    with pytest.raises(InputError, match=r"evaluation\.seed=18446744073709551616"):
        check(TEXT_CELL | {"evaluation": {"seed": 2**64}})


@pytest.mark.parametrize("name", ["a/b", "../../elsewhere", "..", "", "-x"])
def test_a_sweep_that_would_lie_outside_its_folder_is_refused(name):
    assert refusal("sweep", name).startswith(f"sweep={name}: must be the name of a folder")
    check(CONFIG | {"sweep": "largest-0_b.1"})


def test_nested_targets_and_those_in_lists_are_checked():
    assert "callbacks[0].monitr" in refusal(
        "trainer.callbacks", [{"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitr": "loss"}]
    )


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("a.pentaly", ["a.penalty", "a.name"], " (did you mean 'a.penalty'?)"),
        ("alpha", ["game.alpha", "seed"], " (did you mean 'game.alpha'?)"),  # elsewhere, but the very word
        ("a.lr", ["b.lr", "a.lrs"], " (did you mean 'a.lrs'?)"),  # what stands beside goes first
        ("logger.projct", ["paths.root", "seed"], ""),
        ("zzz", ["seed", "model"], ""),
        ("x", [], ""),
    ],
)
def test_nearest(word, known, hint):
    assert nearest(word, known) == hint


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package ``lab`` on the path; returns a function that writes one of its modules."""
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise RuntimeError('imported')\n" + textwrap.dedent(text))

    forget_sources()
    yield write
    forget_sources()


def test_parameters_of_functions_and_constructors(package):
    package(
        "things.py",
        """
        def make(a: int, /, b, *, c: "float | None" = None): ...
        class Thing:
            def __init__(self, a: list[int], *args: int, b: Literal["x", "y"] = "x", **kwargs): ...
        """,
    )
    assert parameters("lab.things.make") == ({"a": int, "b": Any, "c": float | None}, False)
    assert parameters("lab.things.Thing") == ({"a": list[int], "b": Literal["x", "y"]}, True)


def test_a_named_choice_is_read_where_it_is_defined_and_where_it_is_imported_from_the_project(package):
    package(
        "things.py",
        """
        from fairpriv.metrics import Better as Direction
        from lab.other import Colour
        Side = Literal["left", "right"]
        Number = 3
        def make(side: Side, better: Direction | None, colour: Colour, number: Number): ...
        """,
    )
    assert parameters("lab.things.make") == (
        {
            "side": Literal["left", "right"],
            "better": Literal["greater", "less", "neither"] | None,
            "colour": Any,
            "number": Any,
        },
        False,
    )
    found = parameters("fairpriv.classifiers.dimensions.prediction.PredictionMetric")
    assert found is not None
    assert found[0]["better"] == Literal["greater", "less", "neither"]


def test_parameters_of_dataclasses_with_inheritance(package):
    package(
        "things.py",
        """
        @dataclass
        class Base:
            a: int
        @dataclass(frozen=True)
        class Child(Base):
            constant = 3
            b: dict[str, float] = field(default_factory=dict)
        class Plain(Child):
            note: str
        """,
    )
    assert parameters("lab.things.Child") == ({"a": int, "b": dict[str, float]}, False)
    assert parameters("lab.things.Plain") == parameters(
        "lab.things.Child"
    )  # an annotation is no field of a plain class


def test_a_parent_that_cannot_be_read_may_take_anything(package):
    package(
        "things.py",
        """
        import torch.nn as nn
        from somewhere import Unknown
        class A(nn.Module): ...
        class B(Unknown): ...
        class C(Protocol, Generic[T]): ...
        """,
    )
    assert parameters("lab.things.A") == parameters("lab.things.B") == ({}, True)
    assert parameters("lab.things.C") == ({}, False)


def test_parameters_of_class_methods(package):
    package(
        "things.py",
        """
        class Base:
            @classmethod
            def load(cls, path: str, **kwargs): ...
        class Child(Base): ...
        """,
    )
    assert parameters("lab.things.Child.load") == ({"path": str}, True)
    assert parameters("lab.things.Child.save") is None


def test_a_part_may_be_built_by_a_class_method_of_its_class(package):
    package(
        "things.py",
        """
        class Net(Unknown):
            def __init__(self, a: int): ...
            def forward(self, x): ...
            @classmethod
            def small(cls, b: str): ...
            def other(self): ...
        """,
    )
    node = {"_target_": "lab.things.Net.small", "name": "net", "b": "c"}
    assert refusal("model", node) == "unknown key model.name"
    assert parameters("lab.things.Net.small") == ({"b": str}, False)


def test_a_module_that_is_one_file_is_read(package, tmp_path):
    (tmp_path / "alone.py").write_text("class Here:\n    def __init__(self, a: int): ...\n")
    assert parameters("alone.Here") == ({"a": int}, False)
    assert parameters("alone.inner.Here") is None


def test_annotations_that_are_no_types_take_anything(package):
    package("things.py", "def make(a: 'a number', b: int | 'Foo', c: list[3]): ...")
    assert parameters("lab.things.make") == ({"a": Any, "b": Any, "c": list[3]}, False)


def test_a_file_that_was_edited_is_read_again_once_modules_are_forgotten(package):
    package("things.py", "def make(a: int): ...")
    assert parameters("lab.things.make") == ({"a": int}, False)
    package("things.py", "def make(b: str): ...")
    forget_sources()
    assert parameters("lab.things.make") == ({"b": str}, False)
    package("things.py", "def make(b: str, c: int): ...")
    forget_sources()
    assert parameters("lab.things.make") == ({"b": str, "c": int}, False)


def test_a_file_that_is_no_python_is_named_with_its_line(package):
    package("things.py", "class Here\n")
    with pytest.raises(InputError, match=r"things\.py, line 2: expected ':'"):
        parameters("lab.things.Here")


def test_reexports_are_followed(package):
    package("deep/__init__.py", "from .inner import *\nfrom .other import Renamed as Shown")
    package("deep/inner.py", "if True:\n    class Starred:\n        def __init__(self, a: int): ...")
    package("deep/other.py", "from ..top import Renamed")
    package(
        "top.py", "try:\n    class Renamed:\n        def __init__(self, b: str): ...\nexcept ImportError:\n    pass"
    )
    assert parameters("lab.deep.Starred") == ({"a": int}, False)
    assert parameters("lab.deep.Shown") == ({"b": str}, False)
    assert parameters("lab.deep.Renamed") is None


def test_reexports_in_a_circle_end(package):
    package("one.py", "from lab.two import *\nfrom lab.two import There")
    package("two.py", "from lab.one import *\nfrom lab.one import There")
    assert parameters("lab.one.There") is None
    assert parameters("lab.one.Nowhere") is None


def test_an_assigned_name_exists_with_unknown_parameters(package):
    package("things.py", "alias = partial(make, 3)")
    assert parameters("lab.things.alias") == ({}, True)


@pytest.mark.parametrize(
    ("target", "some"),
    [
        ("torch.nn.ReLU", {"inplace": bool}),
        ("torch.optim.AdamW", {"amsgrad": bool}),
        ("lightning.Trainer", {"accelerator": Any, "max_epochs": int | None}),
        ("lightning.pytorch.loggers.WandbLogger", {"offline": bool}),
        ("lightning.pytorch.callbacks.EarlyStopping", {"patience": int}),
        ("torchmetrics.classification.BinaryAccuracy", {"threshold": float}),
    ],
)
def test_the_libraries_are_read(target, some):
    found = parameters(target)
    assert found is not None
    assert some.items() <= found[0].items()


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        ("int", [0, -3], [0.5, True, "1", None]),
        ("float", [0, 0.5], [True, "1", None]),
        ("bool", [True], [1, "true"]),
        ("str", ["a"], [1, None]),
        ("list[int]", [[], [1]], [[0.5], 1, None]),
        ("Sequence[str]", [["a"]], [[1]]),
        ("dict[str, float]", [{}, {"a": 1}], [{"a": "b"}, []]),
        ("Literal['x', 'y']", ["x"], ["z", 0]),
        ("float | Literal['dual']", [0.5, "dual"], ["dull"]),
        ("Optional[int]", [None, 1], ["a"]),
        ("Union[int, list[int]]", [1, [1]], [["a"]]),
        ("'int | None'", [None, 1], ["a"]),
        ("list[int] | None", [None, [1]], [[None]]),
        ("Tensor", [1, "a", None, []], []),  # a type that is not plain takes anything
        ("list['Foo']", [[1]], [1]),
        ("int", [{"_target_": "torch.nn.ReLU"}], []),  # an object to be built
    ],
)
def test_types(annotation, right, wrong):
    hint = schema._hint(ast.parse(annotation, mode="eval").body)
    assert [value for value in right if not schema._fits(value, hint)] == []
    assert [value for value in wrong if schema._fits(value, hint)] == []

"""The LightningModule and its fit: cache, modes, non-finite losses, dual ascent."""

import copy
import functools
import importlib.util
import json
import sys

import lightning
import pytest
import torch
from torch import nn

from fairpriv.classifiers.data.batches import ShuffledBatches, StratifiedBatches
from fairpriv.classifiers.data.rows import Rows
from fairpriv.classifiers.nets.architecture import TableNetwork
from fairpriv.classifiers.nets.classifier import MLP, Classifier, fit, predict, require_logits
from fairpriv.errors import InputError, NonFiniteLossError
from fairpriv.functional import equalized_odds_gap
from fairpriv.store import Store


def biased_rows(n: int = 1200, seed: int = 0) -> Rows:
    """Labels that follow x0, and a feature x1 that tells the group and, within labels, helps nothing."""
    g = torch.Generator().manual_seed(seed)
    s = torch.randint(0, 2, (n,), generator=g)
    y = (torch.rand(n, generator=g) < torch.where(s == 1, 0.7, 0.3)).long()
    X = torch.stack([y + torch.randn(n, generator=g), s + 0.1 * torch.randn(n, generator=g)], 1)
    return Rows(X.float(), y, s, torch.arange(n))


def trained(tmp_path=None, epochs=15, seed=0, dropout=0.0, rows=None, **how) -> Classifier:
    rows = rows or biased_rows()
    torch.manual_seed(seed)
    module = Classifier(MLP(2, 2, hidden=[8], dropout=dropout), classes=2, **{"lr": 0.03, "weight_decay": 0.0, **how})
    trainer = functools.partial(lightning.Trainer, accelerator="cpu", enable_progress_bar=False)
    batches = StratifiedBatches(rows, 600, 5, seed=0)
    fit(
        module,
        batches,
        epochs=epochs,
        trainer=trainer,
        validation=biased_rows(seed=9),
        seed=seed,
        store=Store(tmp_path) if tmp_path else None,
    )
    return module


def gap(module: Classifier) -> float:
    rows = biased_rows(4000, seed=5)
    return float(equalized_odds_gap(predict(module.net, rows.X), rows.y, rows.s))


def test_the_penalty_lowers_the_equalized_odds_gap_of_unseen_rows():
    assert gap(trained()) > 0.2
    assert gap(trained(penalty=2.0)) < 0.08


def test_dual_ascent_raises_lambda_until_the_gap_is_near_epsilon():
    module = trained(epochs=40, dual_rate=1.0, epsilon=0.05)
    assert module.penalty > 0.1
    assert gap(module) < 0.12


def test_dual_ascent_leaves_lambda_at_zero_where_the_constraint_holds():
    assert trained(dual_rate=1.0, epsilon=0.9).penalty == 0.0


def test_a_non_finite_loss_names_stage_and_step():
    rows = biased_rows()
    rows.X[7, 0] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"loss became nan at step 0 of the test"):
        trained(rows=rows, stage="the test")


LAYER = """
from torch import nn


class Scaled(nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.linear, self.factor = nn.Linear(2, 2), factor

    def forward(self, x):
        return {factor} * self.linear(x)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a file of a user's and imports it in place of an earlier one, as another process would."""

    def written(content: str):
        folder = tmp_path / f"code{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "mine_of_tests.py").write_text(content)
        spec = importlib.util.spec_from_file_location("mine_of_tests", folder / "mine_of_tests.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "mine_of_tests", module)
        spec.loader.exec_module(module)
        return module

    return written


def kept_fit(folder, net, made=Classifier, measured=False, **how) -> dict:
    """Fit a network from its weights as they are, and return what became of them."""
    module = made(net, classes=2, lr=0.1, weight_decay=0.0, **how)
    rows = biased_rows(60)
    fit(
        module,
        ShuffledBatches(rows, 60, 0),
        epochs=4,
        trainer=functools.partial(lightning.Trainer, accelerator="cpu", enable_progress_bar=False),
        validation=rows,
        measured=measured,
        store=Store(folder),
    )
    return module.net.state_dict()


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_fit_is_not_read_for_a_network_whose_settings_are_in_no_weight(tmp_path, own):
    layer = own(LAYER.format(factor="self.factor")).Scaled
    nets = [layer(), layer(factor=3.0)]
    nets[1].load_state_dict(nets[0].state_dict())
    apart = [kept_fit(tmp_path / str(i), copy.deepcopy(net)) for i, net in enumerate(nets)]
    assert not same(*apart)
    assert [same(kept_fit(tmp_path / "one", net), alone) for net, alone in zip(nets, apart, strict=True)] == [True] * 2


@pytest.mark.parametrize("patience", [None, 3])
def test_a_curve_of_validation_changes_no_weight(tmp_path, patience):
    net = MLP(2, 2, hidden=[8], dropout=0.3)
    found = [
        kept_fit(tmp_path / str(measured), copy.deepcopy(net), measured=measured, patience=patience)
        for measured in (False, True)
    ]
    assert same(*found)


def test_a_fit_is_not_read_for_attention_of_another_number_of_heads(tmp_path):
    class Attending(nn.Module):
        def __init__(self, heads):
            super().__init__()
            self.attention, self.last = nn.MultiheadAttention(4, heads, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            states = x[:, :, None].expand(-1, -1, 4) * torch.tensor([1.0, -1.0, 0.5, 2.0])
            return self.last(self.attention(states, states, states)[0].mean(1))

    nets = [Attending(1), Attending(4)]
    nets[1].load_state_dict(nets[0].state_dict())
    kept_fit(tmp_path, nets[0])
    kept_fit(tmp_path, nets[1])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_a_fit_is_not_read_for_a_class_whose_code_has_changed(tmp_path, own):
    weights, found = nn.Linear(2, 2).state_dict(prefix="linear."), []
    for factor in (1, 3, 1):
        net = own(LAYER.format(factor=factor)).Scaled()
        net.load_state_dict(weights)
        found.append(kept_fit(tmp_path / "out", net))
    first, other, third = found
    assert not same(first, other)
    assert same(first, third)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_a_fit_is_not_read_for_another_way_to_train(tmp_path, own):
    still = own(
        "from fairpriv.classifiers.nets.classifier import Classifier\n\n\nclass Still(Classifier):\n"
        "    def training_step(self, batch, index):\n        return 0 * super().training_step(batch, index)\n"
    ).Still
    net = MLP(2, 2, hidden=[4])
    before = copy.deepcopy(net.state_dict())
    assert not same(kept_fit(tmp_path / "out", copy.deepcopy(net)), before)
    assert same(kept_fit(tmp_path / "out", net, still), before)


def test_a_finished_fit_is_read_and_not_done_again(tmp_path, monkeypatch):
    first = trained(tmp_path, dropout=0.2, penalty=0.5)
    (file,) = tmp_path.rglob("*.safetensors")
    monkeypatch.setattr(lightning.Trainer, "fit", lambda *a, **k: pytest.fail("trained again"))
    second = trained(tmp_path, dropout=0.2, penalty=0.5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not second.training
    assert [*tmp_path.rglob("*.safetensors")] == [file]


def test_the_driven_lambda_survives_the_cache(tmp_path):
    how = {"epochs": 10, "dual_rate": 1.0, "epsilon": 0.05}
    assert trained(tmp_path, **how).penalty == trained(tmp_path, **how).penalty > 0


@pytest.mark.parametrize(
    "change", [{"lr": 0.02}, {"penalty": 0.1}, {"epochs": 2}, {"seed": 1}, {"weight_decay": 0.1}, {"dropout": 0.1}]
)
def test_a_fit_that_differs_is_not_read_from_the_cache(tmp_path, change):
    trained(tmp_path, epochs=change.pop("epochs", 1), **change)
    trained(tmp_path, epochs=1)
    assert len([*tmp_path.rglob("*.safetensors")]) == 2


def test_what_a_fit_is_found_by_names_no_module_of_ours(monkeypatch, tmp_path):
    keys = []
    monkeypatch.setattr(Store, "cached", lambda self, kind, key, make, **how: keys.append(key))
    trained(tmp_path, epochs=1)
    (key,) = keys
    assert key["net"][0] == ["", "mlp", ""]
    assert "fairpriv" not in json.dumps(key)


def test_a_broken_file_in_the_cache_is_made_again(tmp_path):
    first = trained(tmp_path, epochs=2)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    second = trained(tmp_path, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert file.stat().st_size > 100


def test_a_fit_with_one_wrong_bit_or_another_fit_s_file_is_made_again(tmp_path, caplog):
    first = trained(tmp_path / "first", epochs=2)
    other = trained(tmp_path / "other", epochs=1)
    (file,), (foreign,) = ((tmp_path / name).rglob("*.safetensors") for name in ("first", "other"))
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[-3] ^= 1  # in the last weight
    for content in (bytes(damaged), foreign.read_bytes()):
        file.write_bytes(content)
        caplog.clear()
        again = trained(tmp_path / "first", epochs=2)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
        assert [record.message for record in caplog.records if "made again" in record.message] == [
            f"cache: {file} is damaged, or not what its name says: it is made again"
        ]
        assert file.read_bytes() == whole
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_a_model_that_comes_in_eval_mode_is_trained_in_train_mode():
    modes = []

    class Watched(MLP):
        def forward(self, X):
            modes.append(self.training)
            return super().forward(X)

    rows = biased_rows()
    module = Classifier(Watched(2, 2, hidden=[4]).eval(), classes=2, lr=0.01, weight_decay=0.0)
    trainer = functools.partial(lightning.Trainer, accelerator="cpu", enable_progress_bar=False)
    fit(module, ShuffledBatches(rows, 600, 0), epochs=1, trainer=trainer, validation=rows)
    assert modes == [True, True]
    assert not module.net.training


def test_a_model_that_answers_with_nan_is_no_outcome():
    net = MLP(2, 2, hidden=[4])
    torch.nn.init.constant_(net[0].weight, float("nan"))
    with pytest.raises(NonFiniteLossError, match="diverged"):
        predict(net, torch.ones(3, 2))


class Answering(nn.Module):
    """A linear layer, and what a user makes of its output."""

    def __init__(self, features: int, classes: int, make) -> None:
        super().__init__()
        self.linear, self.make = nn.Linear(features, classes), make

    def forward(self, x):
        return self.make(self.linear(x))


NO_LOGITS = [
    (lambda z: z[:, :1], "gives torch.float32 of shape [4, 1]"),
    (lambda z: z[:, 0], "gives torch.float32 of shape [4]"),
    (lambda z: z.argmax(1), "gives torch.int64 of shape [4]"),
    (lambda z: z.argmax(1, keepdim=True).expand(-1, 3), "gives torch.int64 of shape [4, 3]"),
    (lambda z: (z, z), "gives tuple"),
    (lambda z: {"logits": z}, "gives dict"),
    (lambda z: z.softmax(1), "gives probabilities: leave out the softmax"),
]


@pytest.mark.parametrize(("make", "given"), NO_LOGITS)
def test_a_network_that_gives_no_logits_is_refused_when_it_is_made(make, given):
    described = TableNetwork("mine", functools.partial(Answering, make=make), {})
    with pytest.raises(InputError) as error:
        described.network(5, 3)
    assert str(error.value) == f"model=mine must give logits of shape [4, 3] for 4 rows, and {given}"


def test_a_network_of_another_width_is_refused_when_it_is_made():
    described = TableNetwork("mine", lambda features, classes: nn.Linear(features + 1, classes), {})
    with pytest.raises(InputError, match="model=mine: rows of 5 features do not go through: mat1 and mat2 shapes"):
        described.network(5, 3)


@pytest.mark.parametrize("make", [lambda z: z, lambda z: z.log_softmax(1), lambda z: z + torch.rand_like(z)])
def test_looking_at_a_network_s_logits_changes_nothing_but_its_mode(make):
    torch.manual_seed(0)
    net = nn.Sequential(Answering(5, 3, make), nn.BatchNorm1d(3), nn.Dropout(0.5))
    before, expected = copy.deepcopy(net.state_dict()), torch.rand(3)
    torch.manual_seed(0)
    Answering(5, 3, make)
    require_logits(net, torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), 3, "it")
    assert torch.equal(torch.rand(3), expected)
    assert not net.training
    assert all(torch.equal(weight, before[name]) for name, weight in net.state_dict().items())
    assert TableNetwork("mine", functools.partial(Answering, make=make), {}).network(5, 3).training

"""Steering against a loop over single rows, and the hook against a layer's own bias."""

import pytest
import torch
from hydra.utils import instantiate

from fairpriv.cli import CONF
from fairpriv.config.compose import compose
from fairpriv.errors import InputError
from fairpriv.language_models.contract import ModelOwner
from fairpriv.language_models.data.tokens import Encoded
from fairpriv.language_models.defenses.steering import Steering, _add
from fairpriv.language_models.engines.generation import respond
from fairpriv.language_models.models.pretrained import PretrainedLM


def pairs(start: int) -> list[Encoded]:
    """Rows of several lengths; those of another start have other tokens."""
    made = []
    for i in range(5):
        prompt, response = list(range(start, start + 2 + i)), list(range(start + 40, start + 41 + 3 * i))
        made.append(Encoded(prompt + response, [-100] * len(prompt) + response))
    return made


ROWS = {
    (name, split, 5): pairs(start)
    for start, (name, split) in enumerate([(n, s) for n in ("fairness", "privacy") for s in ("safe", "unsafe")], 10)
}


@pytest.fixture
def model(tiny_lm):
    return PretrainedLM("tiny", str(tiny_lm), dtype="float32").load()[0]


def steering(**options) -> Steering:
    return Steering("steering", **{"dimensions": ["privacy"], "samples": 5, **options})


def vectors(model, made: Steering, seed: int = 0) -> dict[int, torch.Tensor]:
    return made.vectors(model, {which: ROWS[which] for which in made.sets}, seed=seed)[0]


@torch.no_grad()
def mean_state(model, rows: list[Encoded], layer: int) -> torch.Tensor:
    """Row by row, token by token; transformers counts the embedding as the first of its hidden states."""
    total = 0.0
    for row in rows:
        states = model(torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states[layer + 1][0].double()
        said = [states[i] for i, label in enumerate(row.labels) if label != -100]
        total = total + sum(said) / len(said)
    return total / len(rows)


@pytest.mark.parametrize("dimensions", [["privacy"], ["fairness", "privacy"]])
def test_a_vector_is_the_difference_of_means_over_responses(model, dimensions):
    found = vectors(model, steering(dimensions=dimensions, layers=[-2], coefficient=2.5, batch_size=2))
    expected = torch.zeros(32, dtype=torch.float64)
    for name in dimensions:
        safe, unsafe = (mean_state(model, ROWS[name, split, 5], 0) for split in ("safe", "unsafe"))
        expected += 2.5 * (safe - unsafe) / len(dimensions)
    assert list(found) == [0]
    hooks = [len(layer._forward_hooks) for layer in model.model.layers]
    vectors(model, steering(layers=[-2]))
    assert [len(layer._forward_hooks) for layer in model.model.layers] == hooks  # what listened is gone
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_the_middle_layer_is_the_default_and_a_random_direction_is_as_long(model):
    found = vectors(model, steering())
    assert list(found) == [1]
    first, again, other = (vectors(model, steering(direction="random"), seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    for drawn in (first, other):
        assert drawn.norm() == pytest.approx(float(found[1].norm()), rel=1e-5)
        assert abs(torch.cosine_similarity(drawn, found[1], dim=0)) < 0.6


def tuned(model, **options):
    rows = lambda name, split, samples: ROWS[name, split, samples]  # noqa: E731
    given = dict.fromkeys(("tokenizer", "pairs", "fit", "keep", "file", "store", "origin", "name"))
    return steering(**options).tune(ModelOwner(model, pad_id=0, seed=0, rows=rows, **given))


@pytest.mark.parametrize("layers", [[0], [0, 1]])
def test_a_steered_model_answers_as_one_whose_layers_have_that_bias(tiny_lm, model, layers):
    """A bias of the layer's last linear map adds the same at each position, with cache and padding or without."""
    added = vectors(model, steering(layers=layers, coefficient=3.0))
    biased, tokenizer = PretrainedLM("tiny", str(tiny_lm), dtype="float32").load()
    for index, vector in added.items():
        biased.model.layers[index].mlp.down_proj.bias = torch.nn.Parameter(vector)
    prompts = [list(range(5, 5 + length)) for length in (3, 9, 4)]
    told = {
        name: respond(one, tokenizer, prompts, max_new_tokens=8, batch_tokens=200)
        for name, one in {
            "plain": model,
            "biased": biased,
        }.items()
    }
    steered = tuned(model, layers=layers, coefficient=3.0).model
    assert respond(steered, tokenizer, prompts, max_new_tokens=8, batch_tokens=200) == told["biased"] != told["plain"]


def test_what_a_layer_returns_beside_its_states_stays():
    states, cache = torch.ones(1, 2, 3), object()
    steered, kept = _add(torch.arange(3.0), None, (), (states, cache))
    assert steered.tolist() == [[[1, 2, 3]] * 2]
    assert kept is cache


@torch.no_grad()
def test_what_is_added_is_told_beside_what_is_there(model):
    made = steering(layers=[0], coefficient=-2.0)
    rows = {which: ROWS[which] for which in made.sets}
    added, measured = made.vectors(model, rows)
    norms = []
    for row in (row for each in rows.values() for row in each):
        states = model(torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states[1][0]
        norms.append(states[torch.tensor(row.labels) != -100].norm(dim=-1).mean())
    expected = float(added[0].norm() / torch.stack(norms).mean())
    assert measured.metrics == {"edit/steering/0": pytest.approx(expected, rel=1e-4)}


def test_an_equal_difference_is_marked(model):
    rows = dict.fromkeys(steering().sets, ROWS["privacy", "safe", 5])
    assert steering().vectors(model, rows)[1].degenerate == [
        "steering adds nothing: safe and unsafe responses have equal states"
    ]
    assert tuned(model, coefficient=0.0).measured.degenerate == ["steering adds nothing: defense.coefficient=0"]


@pytest.mark.parametrize(("layers", "marked"), [([0, 1], False), ([1, 1], True)])
def test_a_difference_in_one_layer_alone_is_not_marked(model, monkeypatch, layers, marked):
    states = {"safe": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "unsafe": torch.tensor([[0.0, 2.0], [3.0, 4.0]])}
    said = iter(["safe", "unsafe"])  # that differ in the first layer, and not in the second
    monkeypatch.setattr(Steering, "_states", lambda *_: (states[next(said)][layers], torch.ones(2)))
    _, measured = steering(layers=[0, 1]).vectors(model, {which: [] for which in steering().sets})
    assert bool(measured.degenerate) == marked


def test_one_pair_at_a_time_and_one_in_all_are_taken():
    assert steering(samples=1, batch_size=1).sets == [("privacy", "safe", 1), ("privacy", "unsafe", 1)]


def test_another_vector_is_another_content(model, tiny_lm):
    def fresh():
        return PretrainedLM("tiny", str(tiny_lm), dtype="float32").load()[0]

    options = [{}, {"coefficient": 2.0}, {"layers": [0]}, {"direction": "random"}, {"dimensions": ["fairness"]}]
    contents = [str(tuned(fresh(), **each).content) for each in options]
    assert len(set(contents)) == len(options)
    assert str(tuned(fresh()).content) == contents[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [2]}, r"defense\.layers has 2; the model's 2 layers are -2 to 1"),
        ({"layers": [0, -2]}, r"defense\.layers \[0, -2\] name a layer of the model's 2 twice"),
        ({"layers": []}, r"defense\.layers=\[\]"),
        ({"dimensions": []}, r"defense\.dimensions=\[\]"),
        ({"direction": "sum"}, r"defense\.direction=sum: must be one of difference, random"),
        ({"coefficient": float("nan")}, r"defense\.coefficient=nan"),
        ({"samples": 0}, r"defense\.samples=0"),
        ({"batch_size": 0}, r"defense\.batch_size=0"),
        ({"dimensions": ["privacy", "privacy"]}, r"defense\.dimensions=.*: name one dimension or several different"),
    ],
)
def test_what_cannot_be_is_refused(model, options, message):
    with pytest.raises(InputError, match=message):
        steering(**options).check(model)


def test_a_defence_of_weights_cannot_come_after_it(model):
    node = compose(CONF, [], ["defense=spin", "+defense@defense.after=steering"]).defense
    with pytest.raises(InputError, match="changes no weight"):
        instantiate(node, _convert_="all").check(model)

"""An edit of weights: applied, reverted bit for bit, kept in a small file."""

import copy
import importlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from fairpriv.editing import SpinEdit, export
from fairpriv.errors import InputError


def make(dtype=torch.float32, width=8, seed=0):
    torch.manual_seed(seed)
    block = nn.ModuleDict({"mlp": nn.ModuleDict({"up": nn.Linear(6, width), "down": nn.Linear(width, 6)})})
    return nn.ModuleDict({"layers": nn.ModuleList([block, copy.deepcopy(block)])}).to(dtype)


INDICES = {
    "layers.0.mlp.up.weight": torch.tensor([1, 5, 40]),
    "layers.1.mlp.up.weight": torch.tensor([47]),
    "layers.1.mlp.down.weight": torch.tensor([], dtype=torch.int64),
}
PROVENANCE = {"model": "tiny", "revision": "abc", "seed": 3, "ratio": 1e-5, "dimensions": ["fairness", "privacy"]}


def state(model):
    return copy.deepcopy(model.state_dict())


def same_bits(a, b):
    return all(torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strength", [1.0, 0.3, 0.0])
def test_it_scales_the_entries_and_puts_them_back_bit_for_bit(dtype, strength):
    model = make(dtype)
    with torch.no_grad():
        model["layers"][0]["mlp"]["up"].weight.view(-1)[5] = -0.0
    before = state(model)
    edit = SpinEdit.of(model, INDICES, PROVENANCE, strength=strength)
    assert same_bits(before, state(model))
    edit.apply(model)
    for name, weight in model.named_parameters():
        touched = torch.zeros(weight.numel(), dtype=torch.bool)
        touched[INDICES.get(name, torch.tensor([], dtype=torch.int64))] = True
        old = before[name].flatten()
        assert torch.equal(weight.detach().flatten()[~touched], old[~touched])
        torch.testing.assert_close(weight.detach().flatten()[touched], old[touched] * (1 - strength))
    edit.revert(model)
    assert same_bits(before, state(model))


def test_weights_that_are_not_contiguous_are_edited_in_place():
    model = make()
    layer = model["layers"][0]["mlp"]["up"]
    layer.weight = nn.Parameter(layer.weight.detach().T.contiguous().T)
    want = layer.weight.detach().clone().flatten()
    want[torch.tensor([1, 5, 40])] = 0
    SpinEdit.of(model, INDICES, {}).apply(model)
    assert torch.equal(layer.weight.detach().flatten(), want)
    assert layer.weight.requires_grad


def test_a_file_holds_all_of_it(tmp_path):
    model = make(torch.bfloat16)
    before = state(model)
    edit = SpinEdit.of(model, INDICES, PROVENANCE, strength=0.5)
    edit.save(tmp_path / "new" / "edit.safetensors")
    loaded = SpinEdit.load(tmp_path / "new" / "edit.safetensors")
    assert loaded.metadata == edit.metadata
    assert PROVENANCE.items() <= loaded.metadata.items()
    loaded.apply(model)
    edit.revert(model)
    assert same_bits(before, state(model))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["edit.safetensors"]


def test_indices_take_four_bytes_where_they_fit(tmp_path):
    edit = SpinEdit.of(make(), INDICES, {})
    edit.save(tmp_path / "small")
    kinds = {key: tensor.dtype for key, tensor in load_file(tmp_path / "small").items() if key.endswith(".indices")}
    assert set(kinds.values()) == {torch.int32}
    far = {"w": torch.tensor([3, 2**31])}
    SpinEdit(far, {"w": torch.zeros(2)}, {}).save(tmp_path / "large")
    assert torch.equal(SpinEdit.load(tmp_path / "large").indices["w"], far["w"])


def test_an_edit_of_ninety_matrices_is_kilobytes(tmp_path):
    names = [f"model.layers.{i}.mlp.{part}_proj.weight" for i in range(30) for part in ("gate", "up", "down")]
    indices = {name: torch.randint(576 * 1536, (8,)) for name in names}  # SmolLM2 at ratio 1e-5
    metadata = {"shapes": {name: [1536, 576] for name in names}}
    SpinEdit(indices, {name: torch.rand(8) for name in names}, metadata).save(tmp_path / "edit")
    assert (tmp_path / "edit").stat().st_size < 50_000


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "edit"
    SpinEdit.of(make(), INDICES, {}).save(path)
    old = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        SpinEdit.of(make(seed=1), INDICES, {}).save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["edit"]


def test_an_edited_model_is_told_apart_from_a_foreign_one():
    model = make()
    edit = SpinEdit.of(model, INDICES, {})
    with pytest.raises(InputError, match="not edited"):
        edit.revert(model)
    edit.apply(model)
    with pytest.raises(InputError, match="already edited"):
        edit.apply(model)
    other = make(seed=1)
    for change in (edit.apply, edit.revert):
        before = state(other)
        with pytest.raises(InputError, match=r"layers.0.mlp.up.weight: its values"):
            change(other)
        assert same_bits(before, state(other))


def test_a_zero_of_the_other_sign_is_another_value():
    model = make()
    with torch.no_grad():
        model["layers"][0]["mlp"]["up"].weight.view(-1)[5] = -0.0
    edit = SpinEdit.of(model, INDICES, {}, strength=0.5)
    with torch.no_grad():
        model["layers"][0]["mlp"]["up"].weight.view(-1)[5] = 0.0
    with pytest.raises(InputError, match="its values differ"):
        edit.apply(model)


def test_a_refused_edit_changes_nothing():
    model = make()
    edit = SpinEdit.of(model, INDICES, {})
    with torch.no_grad():
        model["layers"][1]["mlp"]["up"].weight.view(-1)[47] += 1e-6  # the last entry looked at
    before = state(model)
    with pytest.raises(InputError, match=r"layers.1.mlp.up.weight: its values differ"):
        edit.apply(model)
    assert same_bits(before, state(model))


def test_a_model_of_other_names_shapes_or_dtype_is_refused():
    edit = SpinEdit.of(make(), INDICES, {})
    with pytest.raises(InputError, match=r"no weight 'layers.0.mlp.up.weight'; it has such as 'layers.0.up.weight'"):
        edit.apply(nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"up": nn.Linear(6, 8)})])}))
    with pytest.raises(InputError, match=r"is \[10, 6\], not \[8, 6\]"):
        edit.apply(make(width=10))
    with pytest.raises(InputError, match=r"is torch.bfloat16, the edit was made of torch.float32"):
        edit.apply(make(torch.bfloat16))


def test_an_edit_of_places_that_do_not_exist_is_refused():
    for index in (48, -1):
        with pytest.raises(InputError, match="has 48 entries"):
            SpinEdit.of(make(), {"layers.0.mlp.up.weight": torch.tensor([index])}, {})
    with pytest.raises(InputError, match="no weight 'lm_head'"):
        SpinEdit.of(make(), {"lm_head": torch.tensor([1])}, {})
    with pytest.raises(InputError, match=r"strength 1.5 must lie in \[0, 1\]"):
        SpinEdit.of(make(), INDICES, {}, strength=1.5)


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "edit"
    SpinEdit.of(make(), INDICES, {}).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"edit: cannot be read, or truncated"):
        SpinEdit.load(path)


def test_a_foreign_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        SpinEdit.load(tmp_path / "absent")
    save_file({"weight": torch.zeros(2)}, tmp_path / "model")
    with pytest.raises(InputError, match="not an edit of fairpriv: its format is None"):
        SpinEdit.load(tmp_path / "model")
    header = {"format": "fairpriv edit 1", "metadata": "{}"}
    for tensors in ({"w.indices": torch.zeros(2)}, {"w": torch.zeros(2)}):
        save_file(tensors, tmp_path / "half", header)
        with pytest.raises(InputError, match="a damaged edit"):
            SpinEdit.load(tmp_path / "half")
    save_file({}, tmp_path / "list", header | {"metadata": "[]"})
    with pytest.raises(InputError, match="a damaged edit"):
        SpinEdit.load(tmp_path / "list")


def test_the_summary_counts_by_layer_and_module():
    indices = INDICES | {"layers.1.mlp.down.weight": torch.tensor([2, 3])}
    assert SpinEdit.of(make(), indices, {}).summary() == {
        "suppressed": 6,
        "layers": {"0": 3, "1": 3},
        "modules": {"mlp.up": 4, "mlp.down": 2},
    }


def test_an_empty_edit_changes_nothing(tmp_path):
    model = make()
    before = state(model)
    edit = SpinEdit.of(model, {"layers.0.mlp.up.weight": torch.tensor([], dtype=torch.int64)}, {})
    edit.save(tmp_path / "edit")
    SpinEdit.load(tmp_path / "edit").apply(model)
    assert same_bits(before, state(model))
    assert edit.summary()["suppressed"] == 0


@pytest.mark.parametrize("strength", [float("nan"), -5, 1e300, float("inf"), 10**400, True, "1", None, [1]])
def test_a_strength_outside_its_range_is_refused_wherever_it_stands(tmp_path, strength):
    model = make()
    edit = SpinEdit.of(model, INDICES, PROVENANCE)
    changed = edit.metadata | {"strength": strength}
    with pytest.raises(InputError, match=r"strength .* must lie in \[0, 1\]") as caught:
        SpinEdit(edit.indices, edit.originals, changed)
    assert len(str(caught.value)) < 200
    tensors = {f"{name}.indices": index for name, index in edit.indices.items()}
    tensors |= {f"{name}.originals": values for name, values in edit.originals.items()}
    save_file(tensors, tmp_path / "edit", {"format": "fairpriv edit 1", "metadata": json.dumps(changed)})
    with pytest.raises(InputError, match="a damaged edit") as caught:
        SpinEdit.load(tmp_path / "edit")
    assert "\n" not in str(caught.value)


NAME = "layers.0.mlp.up.weight"


@pytest.mark.parametrize(
    ("changes", "metadata"),
    [
        ({"indices": torch.tensor([1.0, 5.7, 40.2])}, None),
        ({"indices": torch.tensor([True, False, True])}, None),
        ({"indices": torch.tensor(1), "originals": torch.tensor(0.5)}, None),
        ({"indices": torch.tensor([[1, 5, 40]]), "originals": torch.rand(1, 3)}, None),
        ({"indices": torch.tensor([1, 1, 40])}, None),
        ({"originals": torch.rand(2)}, None),
        ({"originals": torch.tensor([1, 2, 3])}, None),
        ({"originals": torch.rand(3).to(torch.float8_e4m3fn)}, None),
        ({"originals": torch.rand(3).to(torch.complex64)}, None),
        ({"originals": None}, None),
        ({"more": torch.rand(3)}, None),
        ({}, "[" * 100_000),
        ({}, '{"a":' * 100_000),
        ({}, "[]"),
        ({}, '{"shapes": [8, 6]}'),
        ({}, '{"shapes": {"layers.0.mlp.up.weight": "48"}}'),
        ({}, '{"shapes": {"layers.0.mlp.up.weight": {"a": 1}}}'),
        ({}, "{"),
        ({}, '{"strength": 1' + "0" * 5000 + "}"),
    ],
)
def test_a_broken_or_hostile_file_is_refused_in_one_line(tmp_path, changes, metadata):
    model = make()
    before = state(model)
    values = model["layers"][0]["mlp"]["up"].weight.detach().flatten()[[1, 5, 40]]
    tensors = {"indices": torch.tensor([1, 5, 40]), "originals": values} | changes
    header = {"format": "fairpriv edit 1", "metadata": metadata or "{}"}
    save_file({f"{NAME}.{key}": t for key, t in tensors.items() if t is not None}, tmp_path / "edit", header)
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path / 'edit'))}: ") as caught:
        SpinEdit.load(tmp_path / "edit").apply(model)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert same_bits(before, state(model))


@pytest.mark.parametrize("shapes", [{NAME: [6, 8]}, {NAME: [48]}, {NAME: []}])
def test_a_file_of_other_shapes_does_not_fit(tmp_path, shapes):
    model = make()
    edit = SpinEdit.of(model, INDICES, PROVENANCE)
    SpinEdit(edit.indices, edit.originals, edit.metadata | {"shapes": shapes}).save(tmp_path / "edit")
    with pytest.raises(InputError, match="made of another model"):
        SpinEdit.load(tmp_path / "edit").apply(model)


def test_a_pickled_checkpoint_is_no_edit_and_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    torch.save({"weight": Evil()}, tmp_path / "edit.safetensors")
    with pytest.raises(InputError, match="no safetensors file"):
        SpinEdit.load(tmp_path / "edit.safetensors")
    assert not (tmp_path / "run").exists()


def test_nothing_that_an_edit_names_is_ever_built(tmp_path, monkeypatch):
    """Its provenance is data: a class named in it is not even imported."""
    (tmp_path / "evil_edit.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'run')!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = make()
    named = {"_target_": "evil_edit.Evil"}
    SpinEdit.of(model, INDICES, PROVENANCE | {"score": named, **named}).save(tmp_path / "edit")
    edit = SpinEdit.load(tmp_path / "edit")
    edit.apply(model)
    assert edit.metadata["score"] == named
    assert edit.summary()
    assert not (tmp_path / "run").exists()
    importlib.import_module("evil_edit")  # which would have shown
    assert (tmp_path / "run").exists()


def test_indices_that_are_no_whole_numbers_are_refused():
    for index in (torch.tensor([1.5]), torch.tensor([True, False])):
        with pytest.raises(InputError, match="they are whole numbers"):
            SpinEdit.of(make(), {NAME: index}, PROVENANCE)


def test_indices_by_row_and_column_are_not_taken_for_flat_ones():
    places = (torch.arange(12).reshape(3, 4) % 5 == 4).nonzero()  # [2, 2]: rows and columns
    for index in (places, torch.tensor(3)):
        with pytest.raises(InputError, match="they are one list, of flat indices"):
            SpinEdit.of(make(), {NAME: index}, PROVENANCE)


class Writer:
    """A model or tokenizer that writes one file, and then fails perhaps."""

    def __init__(self, error=None):
        self.error = error

    def save_pretrained(self, folder):
        (folder / f"{id(self)}").write_text("half")
        if self.error:
            raise self.error


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error")])
def test_an_export_is_whole_or_not_at_all(tmp_path, there, error):
    folder = tmp_path / "deep" / "out"
    if there:
        folder.mkdir(parents=True)
    for pair in ((Writer(error), Writer()), (Writer(), Writer(error))):
        with pytest.raises(InputError, match="cannot be written"):
            export(*pair, folder)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    export(Writer(), Writer(), folder)
    assert len(list(folder.iterdir())) == 2
    assert list(folder.parent.iterdir()) == [folder]

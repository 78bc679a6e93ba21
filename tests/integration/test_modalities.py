"""Cells of texts and images through the command line, on small files of the real formats."""

import json
import random

import numpy as np
import pytest

SHORT = [
    "training.epochs=2", "game.min_cell=1", "logger=none", "threads=1", "trainer.accelerator=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with Bias in Bios (900 texts, three professions) and UTKFace (360 faces of 16 pixels)."""
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(0)
    rows = []
    for i in range(900):
        profession, gender = (13, 25, 21)[i % 3], i // 3 % 2
        word = {13: "nurse", 25: "surgeon", 21: "people"}[profession if draw.random() < 0.95 else 21]
        pronoun = ("he", "she")[gender]
        said = f"{pronoun} works with a {word}" if draw.random() < 0.5 else f"{word} and {pronoun}"
        number = " ".join(("and", "not", "is")[i // 3**digit % 3] for digit in range(7))  # no two texts are alike
        rows.append((f"{said} {number}", profession, gender))
    (folder / "bias_in_bios" / "data").mkdir(parents=True)
    files = ["train-00000-of-00001-0ab65b32c47407e8", "test-00000-of-00001-5598c840ce8de1ee"]
    files.append("dev-00000-of-00001-e6551072fff26949")
    for name, part in zip(files, (rows[:500], rows[500:700], rows[700:]), strict=True):
        columns = dict(zip(("hard_text", "profession", "gender"), zip(*part, strict=True), strict=True))
        table = pyarrow.table({name: pyarrow.array(values) for name, values in columns.items()})
        pyarrow.parquet.write_table(table, folder / "bias_in_bios" / "data" / f"{name}.parquet")
    (folder / "utkface").mkdir()
    rng = np.random.default_rng(0)
    for i in range(360):
        gender, race = i % 2, (0, 0, 1)[i % 3]
        face = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        face[:8] = 200 * gender + 20 * race
        Image.fromarray(face).save(folder / "utkface" / f"{20 + i % 60}_{gender}_{race}_2017011015{i:04d}.jpg.chip.jpg")
    return folder


@pytest.fixture
def cell(fairpriv, data, tmp_path):
    """Runs one cell on that data; how it ended, and its metrics."""

    def run(*words):
        root = tmp_path / "out"
        ended = fairpriv(*SHORT, f"paths.data={data}", f"paths.root={root}", *words)
        done = [json.loads(path.read_text()) for path in root.glob("cells/*/result.json")]
        completed = [result["metrics"] for result in done if result["status"] == "completed"]
        return ended, completed[0] if completed else {}

    return run


def test_texts_are_defended_and_attacked_on_a_frozen_encoders_features(cell, tiny_encoder):
    ended, metrics = cell(
        "dataset=bias_in_bios", "model=text_encoder", f"model.path={tiny_encoder}", "model.hidden=[8]",
        "training.epochs=20", "training.batch_size=16", "defense=fair_finetune", "defense.penalty=0.1",
        "defense.epochs=4", "defense.batch_size=200",
        "attack=[loss_test,threshold_test,per_point_threshold,kl,label_only_kl]", "game.shadows=3", "game.victims=2",
        "game.adaptive=true", "dimension=[calibration,robustness,membership,attribute]",
        "dimensions.membership.models=8", "dimensions.membership.victims=2",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    for name in ("calibration/ece", "robustness/attack_accuracy", "membership/lira_auc", "attribute/accuracy"):
        assert 0 <= metrics[f"eval/{name}"] <= 1
    assert {"fairness/delta/nurse", "fairness/delta/surgeon", "fairness/delta/professor"} <= set(metrics)
    assert metrics["eval/accuracy"] > 0.5  # of three
    for attack in ("loss_test", "threshold_test", "per_point_threshold", "kl", "label_only_kl"):
        assert 0 <= metrics[f"attack/{attack}/accuracy"] <= 1
    assert 0 <= metrics["pool/equalized_odds_gap"] <= 1
    assert 0 < metrics["pool/equalized_odds_gap_floor"] < 1


def test_all_of_a_text_encoder_is_trained(cell, tiny_encoder):
    ended, metrics = cell(
        "dataset=bias_in_bios", "model=text_encoder", f"model.path={tiny_encoder}", "model.tune=all",
        "model.encoder_lr=1.0", "training.epochs=6", "defense=rehearsal", "defense.epochs=2", "defense.batch_size=100",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert metrics["eval/accuracy"] > 0.5
    ended, _ = cell("dataset=bias_in_bios", "model=text_encoder", f"model.path={tiny_encoder}", "model.tune=all",
                    "attack=[loss_test]")  # fmt: skip
    assert ended.status == 2
    assert "attacks and dimensions such as membership train pools of model=mlp" in ended.err
    assert "model.tune=head" in ended.err


def test_images_are_trained_and_fair_fine_tuned(cell):
    ended, metrics = cell(
        "dataset=utkface", "dataset.size=16", "dataset.groups.race=[White,Black]",
        "game.validation_share=0.25", "model=resnet",
        "model.config.embedding_size=8", "model.config.hidden_sizes=[8,12]", "model.config.depths=[1,1]",
        "defense=fair_finetune", "defense.penalty=0.5", "defense.epochs=2", "defense.batch_size=60",
        "dimension=[calibration,group_fairness]",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert metrics["eval/accuracy"] > 0.7
    assert {"eval/calibration/ece/White", "eval/group_fairness/demographic_parity_gap"} <= set(metrics)


def test_networks_of_pixels_are_trained_and_attacked_from_end_to_end(cell):
    words = ["dataset=utkface", "dataset.size=16", "dataset.groups.race=[White,Black]", "model=pixel_mlp"]
    words += ["model.side=4", "model.hidden=[8]", "game.validation_share=0.25", "defense=rehearsal"]
    ended, metrics = cell(
        *words, "training.epochs=20", "training.batch_size=16", "defense.epochs=2", "defense.batch_size=60",
        "attack=[kl,meta_classifier]", "game.shadows=4", "game.victims=2", "game.adaptive=true",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert metrics["eval/accuracy"] > 0.7
    for attack in ("kl", "meta_classifier"):
        assert 0 <= metrics[f"attack/{attack}/leakage"] <= 0.5
    ended, _ = cell(*words, "model.side=17")
    assert ended.status == 2
    assert "model.side=17: images have 16 pixels per side (dataset.size)" in ended.err


def test_images_are_attacked_on_a_frozen_encoders_features(cell, tmp_path):
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "vit")
    ended, metrics = cell(
        "dataset=utkface", "dataset.size=16", "dataset.groups.race=[White,Black]",
        "game.validation_share=0.25", "model=vit", "model.tune=head",
        f"model.path={tmp_path / 'vit'}", "defense=none", "attack=[loss_test,kl,meta_classifier]", "game.shadows=4",
        "game.victims=2", "dimension=[robustness]", "dimensions.robustness.label_noise=0.2",
        "dimensions.robustness.label_noise_models=2",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert 0 <= metrics["attack/meta_classifier/accuracy"] <= 1
    for name in ("attack_accuracy", "label_noise_accuracy"):
        assert 0 <= metrics[f"eval/robustness/{name}"] <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["dataset=utkface"],
            "model=mlp reads tables and dataset=utkface holds images: choose model=resnet, vit or pixel_mlp",
        ),
        (["dataset=bias_in_bios", "model=resnet"], "reads images and dataset=bias_in_bios holds texts: choose"),
        (["dataset=adult", "model=vit"], "reads images and dataset=adult holds tables: choose model=mlp"),
        (
            [
                "dataset=utkface",
                "dataset.size=16",
                "dataset.groups.race=[White,Black]",
                "model=resnet",
                "defense=dp_sgd",
            ],
            "defense=dp_sgd takes rows of features",
        ),
        (
            ["dataset=utkface", "model=resnet", "dimension=[calibration,robustness]"],
            "dimension=robustness takes rows of features: choose a table, or model.tune=head",
        ),
        (
            [
                "dataset=bias_in_bios",
                "model=text_encoder",
                "model.path=TINY",
                "training.epochs=1",
                "dimension=[membership]",
                "model.tune=all",
            ],
            "dimensions such as membership train pools of model=mlp",
        ),
        (
            ["dataset=bias_in_bios", "model=text_encoder", "model.path=TINY", "defense=threshold_optimizer"],
            "defense=threshold_optimizer takes two labels",
        ),
        (
            ["dataset=bias_in_bios", "model=text_encoder", "model.path=TINY", "+dataset.where.hard_text={contains: q}"],
            "where: none of the 900 rows",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(cell, tiny_encoder, words, message):
    ended, _ = cell(*[word.replace("TINY", str(tiny_encoder)) for word in words])
    assert ended.status == 2
    assert message in ended.err
    assert len([line for line in ended.err.splitlines() if line.startswith("fairpriv: ")]) == 1


def test_a_profession_with_one_gender_is_refused_by_name_or_left_out(cell, tiny_encoder):
    # of the surgeons only men are left
    words = [
        "dataset=bias_in_bios", "model=text_encoder", f"model.path={tiny_encoder}", "model.hidden=[8]",
        "+dataset.where.hard_text={not_contains: [surgeon and she, she works with a surgeon]}",
        "dataset.groups.profession=[nurse,surgeon]", "dataset.groups.gender=[male,female]",
    ]  # fmt: skip
    ended, _ = cell(*words, "game.min_cell=5")
    assert ended.status == 2
    assert "label 'surgeon' and gender 'female'" in ended.err
    assert "name another dataset.sensitive, or leave such labels out by dataset.min_cell_rows" in ended.err
    ended, _ = cell(*words, "dataset.min_cell_rows=60")
    assert ended.status == 2
    assert "leaves 1 labels of 'profession'" in ended.err

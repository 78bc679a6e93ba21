"""Labelled texts, from small files of the real formats."""

import csv
import logging
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fairpriv.classifiers.data.documents import Documents
from fairpriv.classifiers.data.game import GameDataModule
from fairpriv.config.settings import GameSettings
from fairpriv.data.sources import Files
from fairpriv.errors import InputError

CONF = Path(__file__).parents[2] / "conf" / "dataset"
BIOS = [  # text, profession, gender, as LabHC/bias_in_bios has them
    ("She studied nursing in Leeds.", 13, 1),
    ("He works on wards at night.", 13, 0),
    ("He performs operations on hearts.", 25, 0),
    ("She has operated for ten years.", 25, 1),
    ("He raps.", 23, 0),
    ("He has toured with three records.", 23, 0),
]


def parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    columns = {"hard_text": pyarrow.string(), "profession": pyarrow.int64(), "gender": pyarrow.int64()}
    arrays = [pyarrow.array([row[i] for row in rows], type=kind) for i, kind in enumerate(columns.values())]
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(dict(zip(columns, arrays, strict=True))), path)


def bios(tmp_path, texts=BIOS, **changes):
    """The shipped config on three files of the hub's names."""
    root = OmegaConf.create({"paths": {"data": str(tmp_path), "root": str(tmp_path)}})
    config = OmegaConf.merge(root, {"dataset": OmegaConf.load(CONF / "bias_in_bios.yaml")})
    third = -(-len(texts) // 3)
    for i, name in enumerate(config.dataset.source.files):
        parquet(tmp_path / "bias_in_bios" / name, texts[i * third : (i + 1) * third])
    return instantiate(OmegaConf.merge(config.dataset, changes), _convert_="all")


def test_the_hubs_parquet_is_read_with_names_for_its_codes(tmp_path):
    table = bios(tmp_path).load()
    assert list(table.features) == [text for text, *_ in BIOS]
    assert set(table.label_names) == {"nurse", "surgeon", "rapper"}
    assert [table.label_names[y] for y in table.y] == ["nurse"] * 2 + ["surgeon"] * 2 + ["rapper"] * 2
    assert table.group_names == ("male", "female")
    assert table.s.tolist() == [1, 0, 0, 1, 0, 0]


def test_labels_and_groups_that_have_their_names_already_are_read_too(tmp_path):
    bios(tmp_path)
    rows = [["hard_text", "profession", "gender"]]
    rows += [[text, {13: "nurse", 25: "surgeon", 23: "rapper"}[code], ("male", "female")[g]] for text, code, g in BIOS]
    with (tmp_path / "named.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    named = bios(tmp_path, source={"files": ["named.csv"], "folder": str(tmp_path)}).load()
    coded = bios(tmp_path).load()
    assert named.y.tolist() == coded.y.tolist()
    assert named.s.tolist() == coded.s.tolist()
    assert named.label_names == coded.label_names


@pytest.mark.parametrize("word", ["NULL", " n/a ", "?"])
def test_words_for_missing_are_no_labels_and_no_groups(tmp_path, word):
    for column in ("profession", "gender"):
        rows = [{"hard_text": text, "profession": "nurse", "gender": ("male", "female")[g]} for text, _, g in BIOS]
        rows[0]["profession"] = "surgeon"
        rows[3][column] = word
        with (tmp_path / "named.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        source = {"files": ["named.csv"], "folder": str(tmp_path)}
        with pytest.raises(InputError, match=f"column '{column}' of named.csv is empty in 1 of 6 rows"):
            bios(tmp_path, source=source).load()
        assert bios(tmp_path, source=source, missing="drop").load().dropped["missing"] == 1


def test_listed_professions_are_kept_in_their_order(tmp_path):
    table = bios(tmp_path, groups={"profession": ["surgeon", "nurse"]}).load()
    assert table.label_names == ("surgeon", "nurse")
    assert table.y.tolist() == [1, 1, 0, 0]
    assert table.dropped == {"groups": 2, "missing": 0}


def test_a_profession_with_one_gender_is_left_out_by_name_where_that_is_asked_for(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        table = bios(tmp_path, min_cell_rows=1).load()
    assert "fewer than 1 rows in one group of 'gender' are left out: rapper (0)" in caplog.text
    assert set(table.label_names) == {"nurse", "surgeon"}
    assert [table.label_names[y] for y in table.y] == ["nurse"] * 2 + ["surgeon"] * 2
    assert table.dropped["rare labels"] == 2
    with pytest.raises(InputError, match="min_cell_rows=2 leaves 0 labels"):
        bios(tmp_path, min_cell_rows=2).load()


def test_a_draw_of_rows_is_a_seeded_part_of_all(tmp_path):
    texts = [(f"{text} {i}", *rest) for i in range(5) for text, *rest in BIOS]
    table = bios(tmp_path, texts, rows=7).load()
    assert bios(tmp_path, texts, rows=7).load() is table  # read once a process
    told = {text: (profession, gender) for text, profession, gender in texts}
    places = [list(told).index(text) for text in table.features]
    assert len(places) == 7
    assert places == sorted(places) != list(range(7))
    names = {13: "nurse", 23: "rapper", 25: "surgeon"}
    for text, y, s in zip(table.features, table.y, table.s, strict=True):
        assert (table.label_names[y], s) == (names[told[text][0]], told[text][1])


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_an_empty_text_is_an_error_with_its_row_or_left_out(tmp_path, empty):
    rows = [*BIOS[:4], (empty, 13, 0), (empty, 13, 1)]
    with pytest.raises(InputError, match=r"'hard_text' of .* is empty in 2 of 6 rows, first in dev.*, row 1: set data"):
        bios(tmp_path, rows).load()
    table = bios(tmp_path, rows, missing="drop").load()
    assert (len(table.y), table.dropped["missing"]) == (4, 2)


def test_an_empty_column_is_an_error_whatever_is_missing(tmp_path):
    rows = [("", profession, gender) for _, profession, gender in BIOS]
    with pytest.raises(InputError, match=r"is empty in 6 of 6 rows, .*: name another column"):
        bios(tmp_path, rows, missing="drop").load()


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(InputError, match=r"no column 'text' in train.*; .*there are hard_text, profession, gender"):
        bios(tmp_path, text="text").load()


@pytest.mark.parametrize("key", ["groups", "values"])
def test_what_is_said_of_a_column_that_is_not_there_is_an_error(tmp_path, key):
    with pytest.raises(InputError, match=rf"{key}\.gendr: no column 'gendr' in train.*; the nearest is gender; there"):
        bios(tmp_path, **{key: {"gendr": ["female"] if key == "groups" else {"2": "other"}}}).load()


def test_a_code_without_a_name_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"values\.profession: 'profession' of .* holds 28, which is not listed"):
        bios(tmp_path, [*BIOS, ("She flies.", 28, 1)]).load()


def test_text_that_is_no_text_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"'gender' holds a int in train.*, row 1, not text"):
        bios(tmp_path, text="gender").load()


def test_the_label_is_blotted_out_where_the_text_says_it(tmp_path):
    rows = [
        ("text", "job", "sex"),
        ("The Nurse said that nurses, and a nurse, know her.", "nurse", "f"),
        ("A nurse met his doctor (C++).", "nurse", "m"),
        ("The doctor lost her bag.", "doctor", "f"),
        ("He is the doctor.", "doctor", "m"),
    ]
    with (tmp_path / "said.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    source = Files(["said.csv"], folder=str(tmp_path))
    table = Documents(name="said", source=source, text="text", target="job", sensitive="sex", mask=["job"]).load()
    assert list(table.features) == [
        "The _ said that nurses, and a _, know her.",
        "A _ met his doctor (C++).",
        "The _ lost her bag.",
        "He is the _.",
    ]
    kept = Documents(
        name="said", source=source, text="text", target="job", sensitive="sex", where={"text": {"not_contains": "c++"}}
    ).load()
    assert len(kept.y) == 3


def test_a_label_that_is_a_code_or_no_plain_word_is_blotted_out_by_its_name(tmp_path):
    told = [
        ("She is a nurse with 13 wards.", 13, 1),
        ("He nurses; a male Nurse.", 13, 0),
        ("She is a software engineer in Leeds.", 24, 1),
        ("He, a Software-Engineer and software_engineer, sails.", 24, 0),
        ("She raps.", 23, 1),
        ("He is no rapper's rapper.", 23, 0),
    ]
    assert list(bios(tmp_path, told, mask=["profession"]).load().features) == [
        "She is a _ with 13 wards.",
        "He nurses; a male _.",
        "She is a _ in Leeds.",
        "He, a _ and _, sails.",
        "She raps.",
        "He is no _'s _.",
    ]
    (tmp_path / "said.csv").write_text("text,skill,sex\nWrites C++ and C.,C++,f\n(c++),C++,m\nC or C++,C,f\nC.,C,m\n")
    source = Files(["said.csv"], folder=str(tmp_path))
    table = Documents(name="said", source=source, text="text", target="skill", sensitive="sex", mask=["skill"]).load()
    assert list(table.features) == ["Writes _ and C.", "(_)", "_ or _++", "_."]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sensitive": "profession"}, "both 'profession'"),
        ({"missing": "ignore"}, "error or drop"),
        ({"rows": 0}, "at least 1"),
        ({"bins": {"era": {"from": "profession", "edges": [5, 3]}}}, "rising order"),
        ({"bins": {"era": {"from": "profession", "edges": ["3", "15"]}}}, r"dataset\.bins\.era: .*a list of numbers"),
        ({"bins": {"era": {"from": "profession", "edges": 15}}}, r"dataset\.bins\.era: .*a list of numbers"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path, changes, message):
    with pytest.raises(Exception, match=message):
        bios(tmp_path, **changes)


def test_a_group_of_one_text_is_named_with_the_key_that_pools_texts(tmp_path):
    third = {"values": {"gender": {2: "other"}}, "groups": {"gender": ["male", "female", "other"]}}
    data = GameDataModule(bios(tmp_path, [*BIOS, ("They rap.", 23, 2)], **third), GameSettings(), seed=0)
    with pytest.raises(InputError, match=r"group 'other' of 'gender' has one row .* with another by dataset\.values"):
        data.setup()
    of_two = GameDataModule(bios(tmp_path / "two", [*BIOS[:3], *BIOS[4:]]), GameSettings(), seed=0)
    with pytest.raises(
        InputError, match=r"group 'female' of 'gender' has one row .*: name another dataset\.sensitive$"
    ):
        of_two.setup()


def test_a_group_without_an_answer_is_named_with_the_key_that_texts_have(tmp_path, caplog):
    (tmp_path / "said.csv").write_text("text,skill,sex\n" + "Sews.,sewing,f\nCooks.,cooking,unknown\n" * 3)
    source = Files(["said.csv"], folder=str(tmp_path))
    Documents(name="said", source=source, text="text", target="skill", sensitive="sex").load()
    assert "'unknown' (3) looks like no answer, and counts as a group: list the groups in dataset.groups" in caplog.text

"""Tables as people write them: what is missing, what is a number, what is one group, what looks odd."""

import logging
import re
import shlex
import zipfile

import numpy as np
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fairpriv.classifiers.data.columns import MISSING, Notation, missing_codes, notation, oddities, text
from fairpriv.classifiers.data.tabular import TabularDataset
from fairpriv.data.sources import Files
from fairpriv.data.spelling import alike
from fairpriv.errors import InputError

WORDS = ["", " ", "NULL", "null", "None", "NA", "n/a", "#N/A", "NaN", "nan", "?", "<NA>", "empty"]


def people(n=200, **cells):
    """Rows of people, hired by income alone; ``cells`` replaces what rows hold, by column and row number."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "income": [f"{value:.1f}" for value in rng.uniform(1e4, 9e4, n)],
            "city": rng.choice(["Oslo", "Moss"], n),
            "sex": ["f", "m"] * (n // 2),
        }
    ).astype(object)
    frame["hired"] = ["yes" if float(income) > 5e4 else "no" for income in frame["income"]]
    for column, told in cells.items():
        for row, cell in told.items():
            frame.loc[row, column] = cell
    return frame


def as_typed(error):
    """Return the settings that an error tells to set, as Hydra reads them from what a shell makes of these words."""
    words = str(error).partition(": set ")[2].partition("; or list")[0]
    read = [OverridesParser.create().parse_override(word) for word in shlex.split(words)]
    return {override.key_or_group: override.value() for override in read}


def dataset(tmp_path, *frames, text=None, **changes):
    names = []
    for number, frame in enumerate(frames or [None]):
        names.append(f"people{number}.csv")
        content = text if frame is None else frame.to_csv(index=False)
        (tmp_path / names[-1]).write_text(content, newline="")
    given = {"name": "people", "target": "hired", "sensitive": "sex", "positive": ["yes"]} | changes
    return TabularDataset(source=Files(names, folder=str(tmp_path)), **given)


@pytest.fixture
def said(caplog, monkeypatch):
    """What is warned of, line by line."""
    monkeypatch.setattr("fairpriv.classifiers.data.dataset._tables", {})
    with caplog.at_level(logging.WARNING, logger="fairpriv"):
        yield lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("column", ["income", "city", "sex", "hired"])
def test_words_for_missing_are_missing_in_every_column(tmp_path, word, column):
    frame = people(**{column: {3: word, 8: word}})
    with pytest.raises(InputError, match=rf"column '{column}' of people0\.csv has no value in 2 of 200 rows"):
        dataset(tmp_path, frame).load()
    table = dataset(tmp_path, frame, missing="drop").load()
    assert len(table.y) == 198
    assert table.dropped["missing"] == 2
    assert table.rows_read == 200
    assert table.features["income"].dtype == np.float64
    assert table.group_names == ("f", "m") or table.group_names == ("m", "f")


def test_only_blank_cells_are_missing_where_the_config_says_so(tmp_path):
    frame = people(city={3: "?", 4: "None"})
    table = dataset(tmp_path, frame, missing_values=[""]).load()
    assert {"?", "None"} < set(table.features["city"].cat.categories)


def test_a_missing_sensitive_attribute_is_dropped_or_a_group_apart_from_features(tmp_path):
    frame = people(sex={3: "NULL", 4: " "}, city={10: "", 11: "", 12: ""})
    with pytest.raises(InputError, match=r"'sex' .* set dataset\.missing\.sensitive=drop"):
        dataset(tmp_path, frame, missing={"features": "category"}).load()
    table = dataset(tmp_path, frame, missing={"features": "category", "sensitive": "drop"}).load()
    assert (len(table.y), table.dropped["missing"]) == (198, 2)
    assert (table.features["city"] == "missing").sum() == 3
    table = dataset(tmp_path, frame, missing={"features": "drop", "sensitive": "category"}).load()
    assert (len(table.y), table.group_names[-1]) == (197, "missing")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ({"sensitive": "keep"}, "it is error, drop or category"),
        ({"target": "category"}, "no target"),
        ({"sex": "drop"}, r"dataset\.missing\.sex: it takes target, sensitive and features"),
    ],
)
def test_wrong_words_of_missing_are_refused(tmp_path, missing, message):
    with pytest.raises(InputError, match=message):
        dataset(tmp_path, people(), missing=missing)


def test_a_column_without_any_value_is_not_mended_by_dropping_rows(tmp_path):
    frame = people().assign(notes="")
    for missing in ("error", "drop"):
        with pytest.raises(InputError, match=r"'notes' .* no value in any of 200 rows: leave it out by dataset\.drop"):
            dataset(tmp_path, frame, missing=missing).load()
    assert len(dataset(tmp_path, frame, drop=["notes"]).load().y) == 200


def test_a_column_that_is_numeric_but_for_a_few_cells_shows_them(tmp_path):
    frame = people(income={3: "unknown", 8: "unknown", 9: "~ 500"})
    with pytest.raises(InputError) as error:
        dataset(tmp_path, frame).load()
    message = str(error.value)
    assert "column 'income' of people0.csv is numeric but for 3 of 200 cells: 'unknown' (2), '~ 500' (1)" in message
    assert "first in row 4" in message
    assert "dataset.missing_values" in message
    assert "dataset.categorical" in message
    assert "\n" not in message
    assert (
        dataset(tmp_path, frame, missing_values=["unknown", "~ 500"], missing="category")
        .load()
        .features["income"]
        .isna()
        .sum()
        == 3
    )
    assert "unknown" in dataset(tmp_path, frame, categorical=["income"]).load().features["income"].cat.categories
    assert "income" not in dataset(tmp_path, frame, drop=["income"], features=["city"]).load().features


@pytest.mark.parametrize(
    ("written", "wanted", "settings"),
    [
        ("${:.2f}", "currency signs", {"units": ["$"]}),
        ("{:.2f} €", "currency signs", {"units": ["€"]}),
        ("EUR {:.2f}", "currency signs", {"units": ["EUR"]}),
        ("{:.1f}%", "per cent signs", {"units": ["%"]}),
        ("{:,.2f}", "thousands marks", {"thousands": ","}),
        ("£{:,.2f}", "currency signs and thousands marks", {"units": ["£"], "thousands": ","}),
        ("R$ {:.1f}", "currency signs", {"units": ["R$"]}),
        ("{:.1f} kr", "currency signs", {"units": ["kr"]}),
        ("{:.1f} kg", "'kg' behind them", {"units": ["kg"]}),
        ("{:_.1f}", "thousands marks", {"thousands": "_"}),
    ],
)
def test_numbers_as_people_write_them_are_named_with_what_reads_them(tmp_path, written, wanted, settings):
    plain = people()
    frame = plain.assign(income=[written.format(float(value)) for value in plain["income"]])
    with pytest.raises(InputError) as error:
        dataset(tmp_path, frame).load()
    assert f"holds numbers with {wanted}, as '{frame['income'][0]}': set " in str(error.value)
    assert as_typed(error.value) == {f"dataset.{key}": value for key, value in settings.items()}
    with pytest.raises(InputError, match=f"holds numbers with {wanted}"):
        dataset(tmp_path, frame, numeric=["income"]).load()
    read = dataset(tmp_path, frame, **settings).load().features["income"]
    assert read.tolist() == [float(value) for value in plain["income"]]


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_a_table_with_another_separator_is_named_with_what_reads_it(tmp_path, mark):
    frame = people()
    written = frame.to_csv(index=False, sep=mark)
    with pytest.raises(InputError, match="has one column, 'income") as error:
        dataset(tmp_path, text=written).load()
    told = as_typed(error.value)
    read = dataset(tmp_path, text=written, separator=told["dataset.separator"]).load()
    assert read.features["income"].tolist() == [float(value) for value in frame["income"]]


def test_decimal_commas_are_named_and_read(tmp_path):
    plain = people()
    written = [f"{float(value):,.1f}".translate(str.maketrans(",.", ".,")) for value in plain["income"]]
    with pytest.raises(InputError, match=r"thousands marks and decimal commas") as error:
        dataset(tmp_path, plain.assign(income=written)).load()
    assert as_typed(error.value) == {"dataset.thousands": ".", "dataset.decimal": ","}
    read = dataset(tmp_path, plain.assign(income=written), decimal=",", thousands=".").load().features["income"]
    assert read.tolist() == [float(value) for value in plain["income"]]
    with pytest.raises(InputError, match="two different characters"):
        dataset(tmp_path, plain, decimal=",", thousands=",")


@pytest.mark.parametrize("unit", ["1", "-", ".", "12.5"])
def test_units_that_are_a_part_of_numbers_are_refused(tmp_path, unit):
    """By a unit of 1 an income of 15 was read as 5, by - one of -5."""
    with pytest.raises(InputError, match=rf"dataset\.units: '{unit}' is a part of numbers themselves"):
        dataset(tmp_path, people(), units=[unit])
    assert dataset(tmp_path, people(), units=[".-", "m2", "Rs."]).load().features["income"].dtype == float


@pytest.mark.parametrize(
    ("cell", "settings", "read"),
    [
        ("2,5", {"thousands": ","}, None),  # not 25
        ("1234,567", {"thousands": ","}, None),
        ("1,00,000", {"thousands": ","}, 100_000),
        ("-1,234.5", {"thousands": ","}, -1234.5),
        ("12.5", {"decimal": ",", "thousands": "."}, None),  # not 125
        ("1.234,5", {"decimal": ",", "thousands": "."}, 1234.5),
        ("1.500", {"decimal": ","}, None),  # not 1.5, for all that can be told
        ("0.75", {"decimal": ","}, 0.75),
        ("$1.500", {"decimal": ",", "units": ["$"]}, None),
    ],
)
def test_a_mark_in_the_wrong_place_makes_no_other_number(tmp_path, cell, settings, read):
    frame = people()
    frame["income"] = [value.replace(".", settings.get("decimal", ".")) for value in frame["income"]]
    frame.loc[3, "income"] = cell
    if read is not None:
        assert dataset(tmp_path, frame, **settings).load().features["income"][3] == read
        return
    for more in ({}, {"numeric": ["income"]}, {"filters": {"income": {"min": 0}}}):
        with pytest.raises(InputError, match=rf"'income' .*'{re.escape(cell)}', which is no number where dataset\.dec"):
            dataset(tmp_path, frame, **settings, **more).load()
    assert cell in dataset(tmp_path, frame, **settings, categorical=["income"]).load().features["income"].tolist()


def test_a_comma_is_a_decimal_one_where_some_cell_cannot_be_thousands():
    assert "thousands" in notation(["1,500", "2,250"])
    assert "thousands" not in notation(["1,500", "2,25"])
    assert "brackets" in notation(["(3.50)", "4"])
    assert "minus sign behind" in notation(["3.50-", "4"])
    assert "the whole numbers in the file" in notation(["3.5k", "400"])
    assert "thousands marks" in notation(["1,50,000", "9000"])
    assert notation(["Oslo", "12-14", "3"]) is None


def test_points_that_mark_thousands_are_named_where_they_change_a_number(tmp_path):
    plain = people(income={i: str(100 + i) for i in range(5)})
    written = [f"{int(float(value)):,}".replace(",", ".") for value in plain["income"]]
    with pytest.raises(
        InputError, match=r"'income' .* whole numbers beside .* dataset\.thousands=\. 'dataset\.decimal=\",\"' if"
    ):
        dataset(tmp_path, plain.assign(income=written)).load()
    points = [float(value) for value in written]
    read = dataset(tmp_path, plain.assign(income=written), decimal=",", thousands=".").load().features["income"]
    assert read.tolist() == [int(float(value)) for value in plain["income"]]
    assert dataset(tmp_path, plain.assign(income=written), thousands=",").load().features["income"].tolist() == points
    assert len(dataset(tmp_path, plain.assign(income=[f"{i / 8:.3f}".rstrip("0") for i in range(200)])).load().y) == 200


def test_digits_and_minus_signs_of_other_scripts_are_numbers(tmp_path):
    frame = people(income={3: "\u2212 5".replace(" ", ""), 4: "\u0663\u0664", 5: "\uff11\uff12.5"})
    assert dataset(tmp_path, frame).load().features["income"][3:6].tolist() == [-5, 34, 12.5]


def test_a_few_categories_that_begin_with_a_number_stay_categories(tmp_path):
    frame = people(city={i: f"{i % 12 + 1}th" for i in range(200)})
    assert len(dataset(tmp_path, frame).load().features["city"].cat.categories) == 12


def test_a_file_that_is_named_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"people0\.csv and people1\.csv hold the same rows"):
        dataset(tmp_path, people(), people()).load()


@pytest.mark.parametrize("word", ["-", "(null)", "\\N", "unknown", "Prefer not to say"])
def test_a_group_of_those_who_gave_no_answer_is_warned_of(tmp_path, said, word):
    frame = people(sex=dict.fromkeys(range(20), word))
    dataset(tmp_path, frame).load()
    assert any(f"'{word}' (20) looks like no answer, and counts as a group" in line for line in said())
    dataset(tmp_path, frame, groups={"sex": ["f", "m", word]}).load()
    assert sum("no answer" in line for line in said()) == 1


def test_codes_are_one_group_however_files_spell_them(tmp_path):
    first = people(sex={i: "1" if i % 2 else "2" for i in range(200)})
    second = people(sex={i: "1.0" if i % 2 else " 2 " for i in range(200)})
    third = people(sex={i: "1.00" if i % 2 else "x" for i in range(200)})
    table = dataset(tmp_path, first, second).load()
    assert sorted(table.group_names) == ["1", "2"]
    table = dataset(tmp_path, first, second, third).load()
    assert dict(zip(table.group_names, np.bincount(table.s), strict=True)) == {"1": 300, "2": 200, "x": 100}
    assert [text(value) for value in (1, 1.0, "1", "1.0", " 1.", "01", "1.5")] == ["1"] * 5 + ["01", "1.5"]


def test_groups_that_differ_in_case_only_are_refused_by_name(tmp_path, said):
    frame = people(sex={i: "M" if i % 4 == 1 else "m" if i % 2 else "f" for i in range(200)})
    with pytest.raises(InputError, match=r"differ in spelling only: 'M' \(50\) and 'm' \(50\).*dataset\.recode"):
        dataset(tmp_path, frame).load()
    assert len(dataset(tmp_path, frame, groups={"sex": ["f", "m"]}).load().y) == 150
    assert any("left out are 'M' (50), which differ from a listed group in spelling" in line for line in said())
    recode = {"sex": {"from": "sex", "values": {"m": "m", "M": "m", "f": "f"}}}
    assert len(dataset(tmp_path, frame, recode=recode).load().y) == 200
    with pytest.raises(InputError, match=r"recode\.sex: 'sex' of people0.csv holds 'M', which differs"):
        dataset(tmp_path, frame, recode={"sex": {"from": "sex", "values": {"m": "m"}, "other": "f"}}).load()


def test_initials_beside_the_whole_word_are_named_with_the_sizes(tmp_path, said):
    frame = people(sex={i: "M" if i % 4 == 1 else "Male" if i % 2 else "Female" for i in range(200)})
    dataset(tmp_path, frame).load()
    assert any("M may be short for another of its values: 'Female' (100), 'M" in line for line in said())


def test_a_label_that_is_spelled_in_two_ways_is_not_two_labels(tmp_path):
    frame = people()
    frame["hired"] = ["yes" if i % 2 else "Yes" for i in range(200)]
    with pytest.raises(InputError, match="which differ in spelling only, under two labels"):
        dataset(tmp_path, frame).load()


def test_categories_that_differ_in_case_are_named(tmp_path, said):
    dataset(tmp_path, people(city={3: "OSLO", 4: "oslo"})).load()
    assert any("'city' has values that differ in spelling only: " in line for line in said())
    for same in (["non-white", "non white"], ["'m'", "m"], ["m.", "m"], ["01", "1"]):
        assert alike([*same, "-1", "A+", "A", "10"]) == [sorted(same)]
    assert alike(["Oslo", "oslo ", "O\u00adslo", "Moss"]) == [sorted(["Oslo", "oslo ", "O\u00adslo"])]


@pytest.mark.parametrize("closing", ["city", "hired"])
def test_a_quotation_mark_that_swallows_rows_is_an_error_with_its_line(tmp_path, closing):
    lines = people().to_csv(index=False).splitlines()
    lines[10] = lines[10].replace(",Oslo", ',"Oslo').replace(",Moss", ',"Moss')
    if closing == "city":
        lines[90] = lines[90].replace("Oslo,", 'Oslo",').replace("Moss,", 'Moss",')
    else:
        lines[90] += '"'
    with pytest.raises(InputError, match=r"people0\.csv, line 11: a quotation mark opens a field that ends in line 91"):
        dataset(tmp_path, text="\n".join(lines) + "\n", missing="drop").load()


def test_quoted_line_breaks_and_separators_are_read_as_they_are(tmp_path, said):
    frame = people(city={i: "Oslo,\nthe old town" if i % 3 else '=HYPERLINK("x")' for i in range(200)})
    table = dataset(tmp_path, frame).load()
    assert len(table.y) == 200
    assert set(table.features["city"].cat.categories) == {"Oslo,\nthe old town", '=HYPERLINK("x")'}
    assert said() == []


def test_dropping_much_and_dropping_more_of_one_group_is_warned_of(tmp_path, said):
    frame = people().assign(notes=["x" if i % 2 or i % 10 == 0 else "" for i in range(200)])
    table = dataset(tmp_path, frame, missing="drop").load()
    assert (table.rows_read, len(table.y)) == (200, 120)
    assert any("80 of 200 rows are left out (missing 80)" in line for line in said())
    [moved] = [line for line in said() if "changes who is left" in line]
    assert "sex=f is 50.0 % of the rows before and 16.7 % after; most are missing in 'notes'" in moved


def test_rows_read_left_out_and_used_are_told_with_sizes(tmp_path, said):
    frame = people(city={3: "", 5: ""}, sex={7: "x"})
    table = dataset(tmp_path, frame, missing="drop", groups={"sex": ["f", "m"]}).load()
    assert table.told[0] == "200 rows read, 3 left out (missing 2, groups 1), 197 used"
    assert table.told[1] == "sex: f 100, m 97"
    assert table.sizes.sum() == 197
    assert said() == []


def test_row_numbers_ids_dates_and_copies_are_named(tmp_path, said):
    frame = people()
    frame.insert(0, "", range(200))
    frame["index"] = range(7, 207)
    frame["person"] = [f"p{i * 37 % 997}" for i in range(200)]
    frame["account"] = [i * i for i in range(200)]
    frame["since"] = [f"2020-01-{i % 28 + 1:02}" for i in range(200)]
    frame["until"] = [f"{i % 28 + 1} Jan 2020" for i in range(200)]
    frame["day"] = [20200101 + i % 28 for i in range(200)]
    frame["title"] = [["Ms", "Mr", "Mrs", "Mr"][i % 4] for i in range(200)]
    frame["woman"] = [1 - i % 2 for i in range(200)]
    frame["outcome"] = frame["hired"].map({"yes": "won", "no": "lost"})
    dataset(tmp_path, frame).load()
    named = {line.split("look like ")[1].split("; ")[0] for line in said() if "look like" in line}
    assert named == {
        "row numbers: Unnamed: 0, index",
        "unique ids: person, account",
        "dates: since, until, day",
        "a copy of sex in more detail: title",
        "a copy of sex: woman",
        "a copy of hired: outcome",
    }


def test_nothing_is_called_a_copy_of_a_target_with_one_value(tmp_path, said):
    with pytest.raises(InputError, match="label 1 in all 200 rows"):
        dataset(tmp_path, people().assign(hired="yes", title=[["Ms", "Mr", "Dr"][i % 3] for i in range(200)])).load()
    assert said() == []


@pytest.mark.parametrize(
    ("code", "cells", "told"),
    [
        (-999, range(0, 200, 20), True),
        (-1, range(0, 200, 20), True),
        (-9.0, range(0, 200, 20), True),
        (-12, range(0, 200, 20), False),  # a number like others
        (-999, [7], False),  # of one row nothing can be said
    ],
)
def test_a_number_that_stands_for_missing_values_is_named(tmp_path, said, code, cells, told):
    ages = [18 + i % 40 for i in range(200)]
    for i in cells:
        ages[i] = code
    data = dataset(tmp_path, people().assign(age=ages))
    data.load()
    lines = [line for line in said() if "code for missing values" in line]
    assert len(lines) == told
    assert all(f"people: 'age' has 10 rows of {code:g}, which looks like a code" in line for line in lines)
    assert any(f"{code:g} looks like a code for missing values" in line for line in data.profile()) is told


def test_few_numbers_may_be_categories_and_many_negative_ones_are_numbers():
    assert missing_codes(pd.Series([-1, 0, 1] * 40)) == []
    assert missing_codes(pd.Series([*range(-9, 40)] * 4)) == []
    assert missing_codes(pd.Series([*range(40)] * 4)) == []


@pytest.mark.parametrize(
    ("numbers", "codes"),
    [
        ([*range(40), -9, -8], [-9, -8]),
        ([*range(90), 999, 998], [998, 999]),
        ([*range(10), 97, 98, 99], [97, 98, 99]),
        ([*range(10), -7, 777], [-7, 777]),
        ([*range(100)], []),
        ([*range(10), 99, 250], []),  # an outlier beyond them
        ([0, 1, 99], []),  # categories
        ([*range(40), -9, -5], []),
    ],
)
def test_several_codes_and_codes_far_beyond_the_numbers_are_found(numbers, codes):
    assert missing_codes(pd.Series(numbers * 3, dtype=float)) == codes
    assert missing_codes(pd.Series(numbers * 2, dtype=float)) == []


def test_codes_in_a_target_of_numbers_are_named(tmp_path, said):
    frame = people().assign(hired=[-9 if i % 20 == 0 else i % 50 for i in range(200)])
    dataset(tmp_path, frame, positive=None, positive_above=20).load()
    assert any("'hired' has 10 rows of -9, which looks like a code" in line for line in said())


@pytest.mark.parametrize("codes", [["1", "2", "9"], ["0", "1", "-1"], ["1", "2", "99"]])
def test_a_code_for_no_answer_among_groups_is_warned_of(tmp_path, said, codes):
    dataset(tmp_path, people(sex={i: codes[i % 3] for i in range(200)})).load()
    assert any(f"'{codes[2]}' (66) looks like no answer" in line for line in said())


def test_groups_that_are_counted_through_are_answers(tmp_path, said):
    dataset(tmp_path, people(sex={i: str(i % 9 + 1) for i in range(200)})).load()
    assert not any("no answer" in line for line in said())


@pytest.mark.parametrize("first", ["9007199254740992", "92233720368547758081"])
def test_long_codes_stay_apart_that_are_one_number_to_a_float(tmp_path, first):
    codes = [first, str(int(first) + 1)]
    table = dataset(tmp_path, people(sex={i: codes[i % 2] for i in range(1, 200)} | {0: ""}), missing="drop").load()
    assert sorted(table.group_names) == codes
    table = dataset(tmp_path, people(city={i: codes[i % 2] for i in range(200)})).load()
    assert list(table.features["city"].cat.categories) == codes
    assert Notation(MISSING).read(pd.Series([int(code) for code in codes], dtype=object)).tolist() == codes
    if int(first) < 2**63:
        assert Notation(MISSING).read(pd.Series([*map(int, codes), None], dtype="Int64")).tolist()[:2] == codes


@pytest.mark.parametrize("blank", [{}, {7: ""}])
def test_digits_of_one_width_that_begin_with_a_zero_are_codes(tmp_path, said, blank):
    zips = [f"{number:05}" for number in range(1230, 31230, 1500)]
    frame = people(city={i: zips[i % 20] for i in range(200)} | blank)
    table = dataset(tmp_path, frame, missing="category").load()
    assert {*table.features["city"].cat.categories} - {"missing"} == {*zips}
    assert any("'city' has digits of one width, as '01230', and is read as categories: " in line for line in said())
    numbers = dataset(tmp_path, frame, missing="category", numeric=["city"]).load().features["city"]
    assert numbers[[0, 1]].tolist() == [1230, 2730]
    told = len(said())
    listed = dataset(tmp_path, frame, missing="category", categorical=["city"]).load()
    assert listed.features["city"][0] == "1230"  # as ever: what was computed with it stays
    assert not any("of one width" in line for line in said()[told:])
    table = dataset(tmp_path, people(sex={i: zips[i % 2] for i in range(200)}), groups={"sex": [zips[0], zips[1]]})
    assert table.load().group_names == ("01230", "02730")


@pytest.mark.parametrize("cells", ["0 00", "0 1", "0.5 0.7", "05 7", "-01 -02", "00.5 01.5"])
def test_other_numbers_with_a_zero_stay_numbers(tmp_path, cells):
    frame = people(city={i: cells.split()[i % 2] for i in range(200)}).assign(begun="2020-01-02")
    assert dataset(tmp_path, frame).load().features["city"][1] == float(cells.split()[1])


def test_codes_that_a_recoding_writes_without_their_zeros_are_refused(tmp_path):
    frame = people(city={i: ["01", "02"][i % 2] for i in range(200)})
    rule = {"place": {"from": "city", "values": {1: "Oslo"}, "other": "elsewhere"}}
    with pytest.raises(InputError, match=r"recode\.place: 'city' of people0.csv holds '01', which differs in spelling"):
        dataset(tmp_path, frame, recode=rule).load()


@pytest.mark.parametrize("mark", [".", "xx", "50+"])
def test_a_column_of_numbers_with_one_other_word_is_refused_however_often_it_stands(tmp_path, mark):
    frame = people(income=dict.fromkeys(range(0, 200, 2), mark))
    with pytest.raises(InputError, match=rf"numeric but for 100 of 200 cells: '{re.escape(mark)}' \(100\)"):
        dataset(tmp_path, frame).load()


def test_blanks_without_a_width_are_blanks(tmp_path):
    frame = people(sex={3: "m\u200b"}, income={4: "\ufeff5", 5: "\u200b"}, hired={0: "yes\u200b"})
    table = dataset(tmp_path, frame, missing="category").load()
    assert sorted(table.group_names) == ["f", "m"]
    assert table.features["income"][4] == 5
    assert table.features["income"].isna().sum() == 1


def test_numbers_in_quotation_marks_are_named_with_what_reads_them(tmp_path):
    for form in ("'{}'", '="{}"', "'{}"):
        frame = people().assign(age=[form.format(i % 40) for i in range(200)])
        with pytest.raises(InputError, match=r"'age' of people0\.csv holds numbers with quotation marks") as error:
            dataset(tmp_path, frame).load()
        units = as_typed(error.value)["dataset.units"]
        assert dataset(tmp_path, frame, units=units).load().features["age"][:41].tolist() == [*range(40), 0]


@pytest.mark.parametrize(
    "same",
    [["True", "1"], ["false", "0"], ["a &amp; b", "a & b"], ["<= 9", "<=9"], ["x/y", "x / y"], ["9 %", "9%"]],
)
def test_groups_that_are_the_same_to_a_reader_are_refused_by_name(tmp_path, same):
    frame = people(sex={i: [*same, "other"][i % 3] for i in range(200)})
    with pytest.raises(InputError, match="names that differ in spelling only"):
        dataset(tmp_path, frame).load()


@pytest.mark.parametrize("condition", ["in", "not_in"])
def test_values_that_a_filter_does_not_name_for_their_spelling_only_are_told(tmp_path, said, condition):
    frame = people(city=dict.fromkeys(range(5), "OSLO "))
    dataset(tmp_path, frame, filters={"city": {condition: ["Oslo"]}}).load()
    assert any(
        f"dataset.filters.city.{condition} of people0.csv does not name 'OSLO' (5 rows)" in one for one in said()
    )


def test_columns_whose_names_hardly_differ_are_named(tmp_path, said):
    dataset(tmp_path, people().assign(Sex=range(0, 400, 2), **{"city ": "here"})).load()
    told = [line for line in said() if "columns whose names" in line]
    assert [line.split("only: ")[1].split(";")[0] for line in told] == ["'city' and 'city '", "'Sex' and 'sex'"]


def test_a_text_column_most_of_whose_values_become_one_is_told(tmp_path, said):
    frame = people().assign(time=[f"{i % 12}:{i % 60:02}" for i in range(200)])
    dataset(tmp_path, frame).load()
    assert not any("'time'" in line for line in said())
    dataset(tmp_path, frame, max_categories=20).load()
    assert any("'time' has 60 categories, as '0:00'; 62 % of the rows have one of" in line for line in said())


@pytest.mark.parametrize("drop", [True, False])  # False: pandas keeps it among the columns, too
def test_the_index_of_a_parquet_file_is_a_column(tmp_path, drop):
    pytest.importorskip("pyarrow")
    people().set_index("sex", drop=drop).to_parquet(tmp_path / "people.parquet")
    source = Files(["people.parquet"], folder=str(tmp_path))
    assert TabularDataset("people", source, "hired", "sex", positive=["yes"]).load().s.mean() == 0.5


def test_ordinary_columns_are_not_odd():
    rng = np.random.default_rng(0)
    frame = people().assign(income=rng.normal(size=200), age=rng.integers(18, 80, 200))
    assert oddities(frame, "hired", "sex") == {}


def test_profile_has_a_line_for_every_column(tmp_path):
    lines = list(dataset(tmp_path, people(income={3: "NULL"}).assign(row=range(200)), drop=["row"]).profile())
    assert lines[0].startswith("income: numeric, 1 missing, ")
    assert lines[1:3] == [
        "city: categorical, 0 missing, 2 distinct values",
        "sex: categorical, the sensitive attribute, 0 missing, 2 distinct values",
    ]
    assert lines[4].endswith("200 distinct values; looks like row numbers")
    assert len(lines) == 5


def test_parquet_is_read_as_the_same_table(tmp_path):
    pytest.importorskip("pyarrow")
    frame = people(city={3: None, 4: "NULL"}).assign(income=lambda f: f["income"].astype(float), member=[True] * 200)
    frame.to_parquet(tmp_path / "people.parquet")
    source = Files(["people.parquet"], folder=str(tmp_path))
    table = TabularDataset("people", source, "hired", "sex", positive=["yes"], missing="category").load()
    assert table.features["income"].tolist() == frame["income"].tolist()
    assert (table.features["city"] == "missing").sum() == 2
    assert list(table.features) == ["income", "city", "member"]


@pytest.mark.parametrize("kind", [object, "category"])
def test_bytes_in_a_parquet_file_are_text(tmp_path, kind):
    pytest.importorskip("pyarrow")
    frame = people().assign(sex=lambda f: f["sex"].str.encode("utf-8").astype(kind))
    frame.to_parquet(tmp_path / "people.parquet")
    source = Files(["people.parquet"], folder=str(tmp_path))
    assert set(TabularDataset("people", source, "hired", "sex", positive=["yes"]).load().group_names) == {"f", "m"}
    frame.assign(city=b"\xff").to_parquet(tmp_path / "people.parquet")
    with pytest.raises(InputError, match=r"people\.parquet is not UTF-8 \(invalid start byte"):
        TabularDataset("people", source, "hired", "sex", positive=["yes"]).load()


def test_parquet_without_its_package_says_so(tmp_path, monkeypatch):
    (tmp_path / "people.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(pd, "read_parquet", lambda path: (_ for _ in ()).throw(ImportError("no pyarrow")))
    source = Files(["people.parquet"], folder=str(tmp_path))
    with pytest.raises(InputError, match=r"reading parquet needs pyarrow: `pip install pyarrow`"):
        TabularDataset("people", source, "hired", "sex", positive=["yes"]).load()


def test_a_zip_file_with_a_manual_beside_the_table_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "people0.zip", "w") as packed:
        packed.writestr("manual.pdf", b"%PDF")
        packed.writestr("people.csv", people().to_csv(index=False))
    source = Files(["people0.zip"], folder=str(tmp_path))
    assert len(TabularDataset("people", source, "hired", "sex", positive=["yes"]).load().y) == 200
    with zipfile.ZipFile(tmp_path / "people0.zip", "a") as packed:
        packed.writestr("more.csv", "a\n1\n")
    with pytest.raises(InputError, match=r"holds 2 tables, not one \(manual\.pdf, people\.csv, more\.csv\)"):
        TabularDataset("people", source, "hired", "sex", positive=["yes"], drop=["city"]).load()


def test_of_a_wide_file_only_the_named_columns_are_read(tmp_path, monkeypatch):
    frame = pd.concat([people(), pd.DataFrame({f"x{i}": ["1"] * 200 for i in range(110)})], axis=1)
    read = []
    original = pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda *args, **how: read.append(original(*args, **how)) or read[-1])
    recode = {"woman": {"from": "sex", "values": {"f": "1", "m": "0"}}}
    described = {"features": ["income", "city", "woman"], "sensitive": "woman", "recode": recode}
    table = dataset(tmp_path, frame, **described).load()
    assert list(table.features) == ["income", "city"]
    assert [list(one.columns) for one in read[1:]] == [["income", "city", "sex", "hired"], ["income"]]
    with pytest.raises(InputError, match=r"no column 'cty'.*nearest is city; there are income, city, sex, hired, x0"):
        dataset(tmp_path, frame, features=["cty"]).load()
    long = frame.to_csv(index=False).replace("\n", ",surplus\n", 2).replace(",surplus\n", "\n", 1)
    with pytest.raises(InputError, match="cannot be read as a table"):  # not overlooked for reading some columns only
        dataset(tmp_path, text=long, **described).load()
    recode |= {f"y{i}": {"from": "sex", "values": {"f": "1", "m": "0"}} for i in range(3)}
    assert len(dataset(tmp_path, frame, recode=recode).load().y) == 200  # all columns, and no warning of pandas


def test_notation_keeps_rows_and_types():
    column = pd.Series(["1", " 2.0", "NULL", "4"], index=[7, 8, 9, 10], name="x")
    read = Notation(MISSING).read(column)
    assert read.index.tolist() == [7, 8, 9, 10]
    assert read.dropna().tolist() == [1, 2, 4]
    assert Notation(MISSING).read(pd.Series(["true", "FALSE", ""])).tolist()[:2] == ["True", "False"]

import gzip
import logging
import random
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fairpriv.classifiers.data.tabular import Encoder, TabularDataset
from fairpriv.data.sources import Files
from fairpriv.errors import InputError

CONF = Path(__file__).parents[2] / "conf" / "dataset"
PEOPLE = """age,job,sex,hired
30,cook,f,yes
41,clerk,m,no
25,cook,m,yes
58,guard,f,no
"""


def bundled(name, root=Path("nowhere"), **changes):
    """A shipped dataset, as a run builds it."""
    config = OmegaConf.create({"paths": {"data": str(root), "root": str(root)}})
    config.dataset = OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), changes)
    return instantiate(config.dataset, _convert_="all")


def dataset(tmp_path, content=PEOPLE, **changes):
    path = tmp_path / "people.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    given = {"name": "people", "target": "hired", "sensitive": "sex", "positive": ["yes"]} | changes
    return TabularDataset(source=Files(["people.csv"], folder=str(tmp_path)), **given)


def test_adult_has_its_published_counts():
    table = bundled("adult").load()
    assert len(table.y) == 32_561 + 16_281
    assert table.y[:32_561].sum() == 7_841
    assert table.y[32_561:].sum() == 3_846
    assert table.group_names == ("Male", "Female")
    assert np.bincount(table.s).tolist() == [32_650, 16_192]
    assert "?" in table.features["workclass"].cat.categories
    assert not {"sex", "fnlwgt", "education", "income"} & set(table.features)
    assert sum(table.dropped.values()) == 0


def test_adults_relationship_stays_with_one_line_that_says_so_or_goes(caplog, monkeypatch):
    monkeypatch.setattr("fairpriv.classifiers.data.dataset._tables", {})
    with caplog.at_level(logging.INFO, logger="fairpriv"):
        assert "relationship" in bundled("adult").load().features
        assert "relationship" in bundled("adult").load().features  # read once, and told once
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith("adult: features that give sex away are kept: relationship; ")
        assert "dataset.keep_proxies=false" in said
        caplog.clear()
        assert "relationship" not in bundled("adult", keep_proxies=False).load().features
        assert "relationship" in bundled("adult", sensitive="race", keep_proxies=False).load().features
        assert not caplog.records
    sexes = pd.crosstab(bundled("adult").load().features["relationship"], bundled("adult").load().s)
    assert sexes.loc["Husband"].min() < 3  # of 19,716
    assert sexes.loc["Wife"].min() < 5  # of 2,331


def test_a_data_set_class_of_the_same_name_reads_for_itself():
    ours = bundled("german")
    table = ours.load()
    own = {"_load": lambda self: replace(table, name="other"), "__module__": "mine"}
    theirs = type(type(ours).__name__, (type(ours),), own)(**vars(ours))
    assert (ours.load().name, theirs.load().name) == ("german", "other")


def test_compas_keeps_what_propublica_kept_and_switches_its_sensitive_column():
    by_sex, by_race = bundled("compas", sensitive="sex").load(), bundled("compas").load()
    assert len(by_sex.y) == 6_172
    assert by_sex.dropped == {"filters": 7_214 - 6_172, "missing": 0, "groups": 0}
    assert by_sex.y.sum() == 2_809
    assert by_race.group_names == ("African-American", "Caucasian")
    assert np.bincount(by_race.s).tolist() == [3_175, 2_103]
    assert by_race.dropped["groups"] == 509 + 343 + 31 + 11
    assert set(by_race.features) ^ set(by_sex.features) == {"sex", "race"}
    assert list(by_race.features).count("priors_count") == 1


def test_german_sex_comes_from_personal_status_which_leaves_with_it():
    table = bundled("german").load()
    assert len(table.y) == 1_000
    assert table.y.sum() == 700
    assert np.bincount(table.s).tolist() == [690, 310]
    assert not {"sex", "personal_status"} & set(table.features)
    assert len(table.features.columns) == 19


def test_lsac_is_decoded_from_its_one_hot_columns():
    table = bundled("lsac").load()
    assert len(table.y) == 21_791
    assert table.y.sum() == 19_360
    assert table.group_names == ("White", "non-White")
    assert np.bincount(table.s).tolist() == [18_285, 3_506]
    assert list(table.features) == ["LSAT", "UGPA", "ZFYA", "sex"]  # what race was recoded from is gone too
    by_sex = bundled("lsac", sensitive="sex").load()
    assert np.bincount(by_sex.s).tolist() == [12_254, 9_537]
    assert list(by_sex.features) == ["LSAT", "UGPA", "ZFYA", "ethnicity"]
    many = bundled("lsac", sensitive="ethnicity").load()
    assert np.bincount(many.s).tolist() == [18_285, 1_282, 845, 488, 389]
    assert many.dropped["groups"] == 293 + 110 + 99


def census_file(path, relationship):
    """Person records as the census publishes them: blank where a question does not apply, some with spaces."""
    rng = random.Random(0)
    header = f"RT,SERIALNO,PWGTP,AGEP,COW,MAR,{relationship},SCHL,SEX,WKHP,OCCP,PINCP,POBP,RAC1P"
    rows = [
        f"P,2018GQ{n:07},{rng.randint(1, 90)},{rng.randint(17, 80)},{rng.randint(1, 8)},{rng.randint(1, 5)},"
        f"{rng.randint(0, 17)},{rng.randint(1, 24)},{n % 2 + 1},{rng.randint(1, 99)},{rng.randint(10, 9830):04},"
        f"{30_000 if n % 3 else 80_000},{rng.randint(1, 554):03},{(1, 2, 6, 9)[n // 2 % 4]}"
        for n in range(96)
    ]
    out = [
        "P,1,5,12,,5,2,9,1,,,,006,1",  # a child
        "P,2,5,16,1,5,2,16,2,20,4110,90000,006,1",  # not above 16
        "P,3,5,40,1,1,0,21,2,40,0010,100,006,1",  # income not above 100
        "P,4,5,70,,1,0,21,1,,,60000,006,1",  # no working hours
        "P,5,0,50,1,1,0,21,1,40,0010,60000,006,1",  # no weight
    ]
    kept = "P,6,5, 50,,1,0,21,1,40,0010,50000,006,1"  # 50,000 is not above it; its class of worker is blank
    path.write_text("\n".join([header, *rows, *out, kept, ""]))


@pytest.mark.parametrize("relationship", ["RELP", "RELSHIPP"])
def test_acs_income_reads_a_census_file_by_folktables_definition(tmp_path, relationship):
    (tmp_path / "acs").mkdir()
    census_file(tmp_path / "acs" / "psam_p06.csv", relationship)
    table = bundled("acs_income", tmp_path).load()
    assert len(table.y) == 97
    assert table.dropped["filters"] == 5
    assert table.y.tolist() == [int(n % 3 == 0) for n in range(96)] + [0]
    assert table.s.tolist() == [n % 2 for n in range(96)] + [0]
    assert list(table.features) == ["AGEP", "COW", "SCHL", "MAR", "OCCP", "POBP", "RELP", "WKHP", "RAC1P"]
    assert table.features["COW"].iloc[-1] == "missing"
    assert table.features["AGEP"].iloc[-1] == 50
    assert table.features["COW"].cat.categories.tolist() == [*"12345678", "missing"]
    by_race = bundled("acs_income", tmp_path, sensitive="race").load()
    assert by_race.group_names == ("White", "Black", "Asian", "Other")
    assert np.bincount(by_race.s).tolist() == [25, 24, 24, 24]
    assert {"SEX"} == set(by_race.features) - set(table.features)
    assert "RAC1P" not in by_race.features


def test_acs_income_agrees_with_folktables(tmp_path):
    folktables = pytest.importorskip("folktables")
    (tmp_path / "2018" / "1-Year").mkdir(parents=True)
    census_file(tmp_path / "2018" / "1-Year" / "psam_p06.csv", "RELP")
    origin = folktables.ACSDataSource(survey_year="2018", horizon="1-Year", survey="person", root_dir=str(tmp_path))
    X, y, _ = folktables.ACSIncome.df_to_pandas(origin.get_data(states=["CA"]))
    table = bundled("acs_income", source={"folder": str(tmp_path / "2018" / "1-Year")}).load()
    assert table.y.tolist() == y["PINCP"].astype(int).tolist()
    for name in ("AGEP", "SCHL", "WKHP"):
        assert table.features[name].tolist() == X[name].tolist()
    for name in ("MAR", "OCCP", "POBP", "RELP", "RAC1P"):
        assert table.features[name].astype(int).tolist() == X[name].astype(int).tolist()


@pytest.mark.parametrize(("low", "high"), [("0", "1"), ("False", "True"), ("0.0", "1.0")])
@pytest.mark.parametrize("relationship", ["RELP", "RELSHIPP"])
def test_acs_income_that_others_have_made_is_read_as_it_is(tmp_path, low, high, relationship):
    (tmp_path / "acs").mkdir()
    census_file(tmp_path / "acs" / "psam_p06.csv", relationship)
    whole = bundled("acs_income", tmp_path).load()
    raw = pd.read_csv(tmp_path / "acs" / "psam_p06.csv", skipinitialspace=True)
    raw = raw[(raw.AGEP > 16) & (raw.PINCP > 100) & (raw.WKHP > 0) & (raw.PWGTP > 0)]
    made = raw[["AGEP", "COW", "SCHL", "MAR", "OCCP", "POBP", relationship, "WKHP", "SEX", "RAC1P"]].astype(float)
    made["PINCP"] = np.where(raw.PINCP > 50_000, high, low)
    made.to_csv(tmp_path / "acs" / "made.csv")  # with row numbers
    table = bundled("acs_income", tmp_path, source={"files": ["made.csv"]}).load()
    assert table.y.tolist() == whole.y.tolist()
    assert table.s.tolist() == whole.s.tolist()
    assert table.label_names == whole.label_names
    pd.testing.assert_frame_equal(table.features, whole.features)


def test_acs_income_reads_the_census_own_zip_file(tmp_path):
    (tmp_path / "acs" / "2018" / "1-Year").mkdir(parents=True)
    census_file(tmp_path / "psam_p06.csv", "RELP")
    with zipfile.ZipFile(tmp_path / "acs" / "2018" / "1-Year" / "csv_pca.zip", "w") as packed:
        packed.writestr("ACS2018_PUMS_README.pdf", b"%PDF")
        packed.write(tmp_path / "psam_p06.csv", "psam_p06.csv")
    assert len(bundled("acs_income", tmp_path).load().y) == 97


def test_csv_of_the_user_needs_four_values(tmp_path):
    (tmp_path / "people.csv").write_text(PEOPLE)
    config = {"files": ["people.csv"], "folder": str(tmp_path)}
    table = bundled("csv", source=config, target="hired", positive=["yes"], sensitive="sex").load()
    assert table.y.tolist() == [1, 0, 1, 0]
    assert table.label_names == ("no", "yes")
    assert table.group_names == ("f", "m")
    assert table.features["age"].tolist() == [30, 41, 25, 58]
    assert table.features["job"].tolist() == ["cook", "clerk", "cook", "guard"]


def test_same_content_is_read_once_and_changed_content_again(tmp_path):
    first = dataset(tmp_path)
    table = first.load()
    assert dataset(tmp_path).load() is table
    assert dataset(tmp_path, positive=["no"]).load() is not table
    assert dataset(tmp_path, PEOPLE + "33,cook,m,no\n").load() is not table


def test_groups_are_ordered_and_other_rows_counted(tmp_path):
    content = PEOPLE + "33,cook,x,no\n34,cook,x,yes\n35,cook,x,yes\n"
    table = dataset(tmp_path, content, groups={"sex": ["m", "f"]}).load()
    assert table.group_names == ("m", "f")
    assert table.s.tolist() == [1, 0, 0, 1]
    assert table.dropped["groups"] == 3
    assert dataset(tmp_path, content).load().group_names == ("x", "f", "m")


def test_codes_match_however_they_are_spelled(tmp_path):
    content = "x,sex,hired\n1,1,1 \n2,2, 0\n3,1.0,0\n4,,1\n5,2,maybe\n"
    table = dataset(
        tmp_path,
        content,
        groups={"sex": [2, "1"]},
        positive=[1],
        missing="drop",
        filters={"hired": {"not_in": ["maybe"]}},
    ).load()
    assert table.s.tolist() == [1, 0, 1]
    assert table.y.tolist() == [1, 0, 0]


def test_two_columns_of_one_file_are_not_given_one_name(tmp_path):
    data = dataset(tmp_path, rename={"age": "years", "sex": "years"}, sensitive="years")
    with pytest.raises(InputError, match=r"dataset\.rename: .* has 'age' and 'sex', which cannot both be 'years'"):
        data.load()


def test_every_filter_condition(tmp_path):
    kept = {
        "min": (41, {41, 58}),
        "max": (30, {25, 30}),
        "above": (30, {41, 58}),
        "below": (30, {25}),
        "in": ([25, "58"], {25, 58}),
        "not_in": ([25], {30, 41, 58}),
    }
    content = PEOPLE + ",cook,m,no\n"  # no age: passes no filter
    for condition, (bound, ages) in kept.items():
        frame = dataset(tmp_path, content, filters={"age": {condition: bound}})
        source = frame._filter(frame._read(frame.source.locate()), "people.csv")
        assert set(source["age"]) == ages, condition


def test_sensitive_column_and_its_relatives_stay_out_unless_asked_for(tmp_path):
    content = PEOPLE.replace(",f,", ",F1,").replace(",m,", ",M2,")
    recode = {
        "gender": {"from": "sex", "values": {"F1": "woman"}, "other": "man"},
        "woman": {"from": "gender", "values": {"woman": "1", "man": "0"}},
        "outcome": {"from": "hired", "values": {"yes": "1", "no": "0"}},
    }
    table = dataset(tmp_path, content, sensitive="gender", recode=recode).load()
    assert list(table.features) == ["age", "job"]
    table = dataset(tmp_path, content, sensitive="gender", recode=recode, include_sensitive=True).load()
    assert list(table.features) == ["age", "job", "gender"]


def test_files_are_concatenated_and_compressed_ones_read(tmp_path):
    (tmp_path / "a.csv").write_text(PEOPLE)
    with gzip.open(tmp_path / "b.csv.gz", "wt") as handle:
        handle.write("job,age,hired,sex\nguard,20,yes,m\n")
    source = Files(["a.csv", "b.csv.gz"], folder=str(tmp_path))
    table = TabularDataset("people", source, "hired", "sex", positive=["yes"]).load()
    assert table.features["age"].tolist() == [30, 41, 25, 58, 20]
    assert table.features["job"].tolist()[-1] == "guard"


def test_files_with_other_columns_are_named(tmp_path):
    (tmp_path / "a.csv").write_text(PEOPLE)
    (tmp_path / "b.csv").write_text(PEOPLE.replace("job", "work"))
    source = Files(["a.csv", "b.csv"], folder=str(tmp_path))
    with pytest.raises(InputError, match=r"a\.csv and b\.csv .* job, work"):
        TabularDataset("people", source, "hired", "sex", positive=["yes"]).load()


def test_rows_with_missing_values_are_dropped_or_kept_as_told(tmp_path):
    content = PEOPLE + ",cook,m,no\n33,,m,no\n"
    table = dataset(tmp_path, content, missing="drop").load()
    assert len(table.y) == 4
    assert table.dropped["missing"] == 2
    table = dataset(tmp_path, content, missing="category").load()
    assert table.features["job"].tolist()[-1] == "missing"
    assert np.isnan(table.features["age"].iloc[4])


def test_missing_values_in_unused_columns_do_not_matter(tmp_path):
    table = dataset(tmp_path, PEOPLE + "33,,m,no\n", drop=["job"]).load()
    assert len(table.y) == 5


BAD_INPUT = [
    (
        {"target": "hird"},
        PEOPLE,
        r"target: no column 'hird' in people\.csv; the nearest is hired; there are age, job, sex, hired",
    ),
    ({"sensitive": "gender"}, PEOPLE, r"sensitive: no column 'gender'"),
    ({"drop": ["jb"]}, PEOPLE, r"drop: no column 'jb'.*nearest is job"),
    ({"features": ["agee"]}, PEOPLE, r"features: no column 'agee'.*nearest is age"),
    ({"filters": {"agee": {"min": 3}}}, PEOPLE, r"filters: no column 'agee'"),
    ({"recode": {"g": {"from": "sx", "values": {}}}}, PEOPLE, r"recode\.g\.from: no column 'sx'.*nearest is sex"),
    ({}, "", r"people\.csv is empty"),
    ({}, "age,job,sex,hired\n", r"people\.csv has no rows"),
    ({}, PEOPLE.replace("cook", "caf\xe9").encode("latin-1"), r"people\.csv is not UTF-8 .*save it as UTF-8"),
    ({}, PEOPLE + "1,2,3,4,5\n", r"people\.csv cannot be read as a table"),
    (
        {},
        PEOPLE + ",cook,m,no\n",
        r"column 'age' of people\.csv has no value in 1 of 5 rows: set dataset\.missing=drop",
    ),
    (
        {"missing": "category"},
        PEOPLE + "30,cook,,no\n",
        r"column 'sex' .* no value in 1 of 5 rows.*missing=drop to leave them out$",
    ),
    ({"missing": "drop"}, "age,sex,hired\n,f,yes\n,m,no\n", r"missing=drop leaves no row.*'age'"),
    ({}, PEOPLE + "30,cook,m,maybe\n", r"not binary: it holds 'yes' \(2\), 'no' \(2\), 'maybe' \(1\)"),
    ({"negative": ["maybe"]}, PEOPLE, r"not binary: it holds 'yes' \(2\), 'no' \(2\)"),
    ({}, PEOPLE.replace(",no", ",yes"), r"label 1 in all 4 rows: it holds 'yes' \(4\)"),
    (
        {"positive": ["Yes"]},
        PEOPLE.replace(",yes", ",no"),
        r"label 0 in all 4 rows: it holds 'no' \(4\), and dataset\.positive=\['Yes'\]",
    ),
    ({"positive": None, "positive_above": 3}, PEOPLE, r"'hired' .* numeric but holds 'yes' \(2\), 'no' \(2\)"),
    (
        {"groups": {"sex": ["f", "M"]}},
        PEOPLE,
        r"groups\.sex: no row of people\.csv has 'M'; it holds 'f' \(2\), 'm' \(2\)",
    ),
    ({"groups": {"sex": ["f"]}}, PEOPLE, r"two groups are needed"),
    ({"groups": {"sxe": ["f", "m"]}}, PEOPLE, r"dataset\.groups: no column 'sxe' in people\.csv; the nearest is sex"),
    (
        {"groups": {"sxe": ["f", "m"]}, "features": ["age"]},
        PEOPLE,
        r"dataset\.groups: no column 'sxe'.*there are age, job, sex, hired",
    ),
    (
        {"positive": ["Yes"]},
        PEOPLE,
        r"dataset\.positive=\['Yes'\]: no row of people\.csv has .*; it holds 'yes' \(2\), 'no' \(2\)$",
    ),
    ({"positive": [True]}, PEOPLE, r"'no' \(2\); YAML reads yes, no, on and off as true and false: quote them"),
    (
        {"groups": {"hired": [False, True]}, "sensitive": "hired", "target": "job", "positive": ["cook"]},
        PEOPLE,
        r"dataset\.groups\.hired: no row of people\.csv has 'False'; .*; YAML reads yes, no, .*: quote them",
    ),
    (
        {},
        PEOPLE.replace(",", ", "),
        r"no column 'hired' in people\.csv, but ' hired', with a blank: dataset\.skip_initial_space=true",
    ),
    ({}, PEOPLE.replace("hired", "hired "), r"no column .hired. in people.*, but .hired ., with a blank: name it so"),
    ({}, "People of 2020\n" + PEOPLE, r"people\.csv cannot be read as a table: .*more fields .*dataset\.skip_rows"),
    ({"groups": {"sex": ["f", "m", "f"]}}, PEOPLE, r"names a group twice"),
    (
        {"sensitive": "age"},
        PEOPLE + "".join(f"{n},cook,f,no\n" for n in range(60, 90)),
        r"has 34 values: list the groups",
    ),
    ({"filters": {"age": {"min": 99}}}, PEOPLE, r"filters: none of the 4 rows"),
    ({"filters": {"job": {"min": 99}}}, PEOPLE, r"'job' of people\.csv is to be numeric but holds 'cook' \(2\)"),
    ({"numeric": ["job"]}, PEOPLE, r"'job' of people\.csv is to be numeric but holds 'cook' \(2\)"),
    ({}, PEOPLE + "inf,cook,m,no\n", r"'age' of people\.csv has 1 infinite"),
    ({}, PEOPLE + "-1e200,cook,m,no\n", r"'age' of people\.csv holds numbers as large as 1e\+200"),
    ({"features": ["sex"]}, PEOPLE, r"no feature is left"),
    ({"recode": {"g": {"from": "sex", "values": {"f": "w"}}}}, PEOPLE, r"recode\.g: .*not listed: 'm' \(2\)"),
    ({"decode": {"j": "j_"}}, PEOPLE, r"decode\.j: 'j_' begins 0 columns"),
    (
        {"proxies": {"sex": ["jobs"]}},
        PEOPLE,
        r"dataset\.proxies\.sex: no column 'jobs' in people\.csv; the nearest is job;",
    ),
    (
        {"proxies": {"sexes": ["job"]}},
        PEOPLE,
        r"dataset\.proxies: no column 'sexes' in people\.csv; the nearest is sex;",
    ),
    (
        {"proxies": {"sex": ["age", "job"]}, "keep_proxies": False},
        PEOPLE,
        r"no feature is left",
    ),
    (
        {"decode": {"j": "j_"}},
        "j_a,j_b,sex,hired\n1,1,f,yes\n0,1,m,no\n",
        r"decode\.j: 1 row of .*without exactly one",
    ),
    ({"columns": ["a", "b", "c"]}, PEOPLE, r"it has 4 columns, dataset\.columns 3 names"),
    ({}, "x,x,sex,hired\n1,2,f,yes\n1,1,m,no\n", r"two columns 'x' that differ"),
    (
        {"features": ["age"], "missing": "drop"},
        PEOPLE + "33,cook, junior,m,no\n34,f,yes\n",  # a field too many, and one too few
        r"people\.csv cannot be read as a table: .*line 6",
    ),
]


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("True", "False"), ("TRUE", "FALSE"), ("1.0", "0.0")])
def test_columns_of_dummies_are_decoded_however_they_write_yes(tmp_path, yes, no):
    content = "\n".join(
        ["age,j_a,j_b,sex,hired", *(f"{i},{yes},{no},f,yes\n{i},{no},{yes},m,no" for i in range(3)), ""]
    )
    assert dataset(tmp_path, content, decode={"job": "j_"}).load().features["job"].tolist() == ["a", "b"] * 3


@pytest.mark.parametrize(("changes", "content", "message"), BAD_INPUT)
def test_bad_input_is_named_in_one_line(tmp_path, changes, content, message):
    with pytest.raises(InputError, match=message) as error:
        dataset(tmp_path, content, **changes).load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sensitive": "hired"}, "both 'hired'"),
        ({"positive": None}, "exactly one"),
        ({"positive_above": 3}, "exactly one"),
        ({"separator": ";;"}, "separator: ';;'; one character"),
        ({"missing": "ignore"}, "error, drop or category"),
        ({"label_names": ["a", "a"]}, "label_names"),
        ({"label_names": ["a", "a", "b"]}, "label_names"),
        ({"label_names": ["1", "1.0"]}, "label_names"),
        ({"max_categories": 1}, "at least 2"),
        ({"numeric": ["age"], "categorical": ["age"]}, "both as numeric and as categorical"),
        ({"filters": {"age": {"minimum": 3}}}, r"filters\.age\.minimum: a condition is one of min"),
        ({"filters": {"age": {"in": 3}}}, r"filters\.age\.in: 3; a list"),
        ({"filters": {"age": {"min": [3]}}}, r"filters\.age\.min: \[3\]; a number"),
        ({"filters": {"age": {"min": "3"}}}, r"filters\.age\.min: 3; a number"),
        ({"filters": {"age": {"below": None}}}, r"filters\.age\.below: None; a number"),
        ({"negative": ["no", "yes"]}, r"dataset\.positive and dataset\.negative both name 'yes'"),
        ({"recode": {"g": {"from": "sex"}}}, r"recode\.g"),
        ({"recode": {"g": {"from": "sex", "values": ["f", "m"]}}}, r"recode\.g: from is a column's name, and values"),
        ({"recode": {"g": {"from": "sex", "values": None}}}, r"recode\.g: from is a column's name, and values"),
        ({"recode": {"g": {"from": ["sex"], "values": {"f": "w"}}}}, r"recode\.g: from is a column's name"),
        ({"recode": {"g": {"from": "sex", "values": {"f": ["w"]}}}}, r"recode\.g: \['w'\] is no value"),
        ({"recode": {"g": {"from": "sex", "values": {"f": None}}}}, r"recode\.g: None is no value"),
        ({"recode": {"g": {1: "sex"}}}, r"recode\.g: has 1; it takes"),
    ],
)
def test_bad_description_is_refused_before_anything_is_read(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        dataset(tmp_path, **changes)


def test_wrong_zip_is_an_input_error(tmp_path):
    (tmp_path / "people.csv.zip").write_text("not a zip")
    source = Files(["people.csv.zip"], folder=str(tmp_path))
    with pytest.raises(InputError, match="cannot be read as a table"):
        TabularDataset("people", source, "hired", "sex", positive=["yes"]).load()


def test_a_repeated_column_with_the_same_content_counts_once(tmp_path):
    table = dataset(tmp_path, "x,x,sex,hired\n1,1,f,yes\n2,2,m,no\n").load()
    assert list(table.features) == ["x"]


def frame(**columns):
    return pd.DataFrame(
        {name: pd.Series(v).astype("category") if isinstance(v[0], str) else v for name, v in columns.items()}
    )


def test_encoder_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    table = frame(a=rng.normal(5, 3, 50), job=[str(v) for v in rng.choice(list("cgkx"), 50)], b=rng.exponential(9, 50))
    train, rest = table[:30], table[30:]
    encoder = Encoder.fit(train)
    numbers = StandardScaler().fit(train[["a", "b"]]).transform(rest[["a", "b"]])
    one_hot = OneHotEncoder(sparse_output=False, handle_unknown="ignore").fit(train[["job"]].astype(str))
    wanted = np.hstack([numbers[:, :1], one_hot.transform(rest[["job"]].astype(str)), numbers[:, 1:]])
    encoded = encoder.transform(rest)
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(encoded, wanted, atol=1e-5)
    assert encoder.feature_names == ("a", "job=c", "job=g", "job=k", "job=x", "b")


def test_encoder_knows_nothing_but_the_training_rows():
    table = frame(a=[1.0, 2.0, 3.0, 1000.0], job=["c", "g", "c", "k"])
    changed = frame(a=[1.0, 2.0, 3.0, -7.0], job=["c", "g", "c", "z"])
    assert Encoder.fit(table[:3]) == Encoder.fit(changed[:3])
    assert Encoder.fit(table[:3]).transform(table[3:])[0, 1:].tolist() == [0, 0]  # a category training does not hold


def test_constant_column_is_zero_even_where_it_changes_later():
    table = frame(a=[0.1] * 12 + [5.0])
    assert Encoder.fit(table[:12]).transform(table).tolist() == [[0.0]] * 13


def test_rare_categories_are_pooled_by_training_frequency():
    train = frame(job=["a"] * 3 + ["b"] * 2 + ["c", "d"])
    encoder = Encoder.fit(train, max_categories=3)
    assert encoder.feature_names == ("job=a", "job=b", "job=other")
    assert encoder.transform(frame(job=["a", "b", "c", "d", "z"])).tolist() == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
        [0, 0, 1],
        [0, 0, 0],
    ]


def test_missing_number_is_the_mean_and_marked():
    train = frame(a=[1.0, 3.0, float("nan")], b=[1.0, 3.0, 5.0])
    encoder = Encoder.fit(train)
    assert encoder.feature_names == ("a", "a=missing", "b")
    assert encoder.transform(train)[:, :2].tolist() == [[-1, 0], [1, 0], [0, 1]]
    assert encoder.transform(frame(a=[2.0], b=[float("nan")])).tolist() == [[0, 0, 0]]  # new in b: the mean

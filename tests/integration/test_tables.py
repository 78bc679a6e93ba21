"""What a run says of a table, on the screen and in its result, and how names of the data are printed."""

import json

import pytest

SMALL = ["debug=fast", "paths.root=out"]


@pytest.fixture
def table(tmp_path):
    """Writes a table of 1,200 people, a tenth of a third of them without an age; gives the words that choose it."""

    def write(name: str, no: str = "no", yes: str = "yes", *words: str) -> list[str]:
        rows = [
            f"{'' if i % 5 == 0 and i % 3 == 0 else i % 61},{('wo', '')[i % 2]}man,{(no, yes)[i % 7 > 3]}\n"
            for i in range(1200)
        ]
        (tmp_path / f"{name}.csv").write_text(f"age,sex,hired\n{''.join(rows)}")
        return [
            "dataset=csv",
            f"dataset.name={name}",
            f"dataset.source.files=[{name}.csv]",
            "dataset.target=hired",
            f'dataset.positive=["{yes}"]',
            "dataset.sensitive=sex",
            *words,
        ]

    return write


def test_what_was_read_is_on_the_screen_and_in_the_result(fairpriv, table, tmp_path):
    ended = fairpriv(*table("told", "no", "yes", "dataset.missing=drop"), *SMALL)
    assert ended.status == 0, ended.err
    screen = ended.out + ended.err
    assert "told: 1200 rows read, 80 left out (missing 80), 1120 used" in screen
    assert "told: sex: man 560, woman 560" in screen
    assert "told: world 0: 100% sex=man, 0% others" in screen
    assert "decides, with" in screen
    assert "measure little" in screen
    [file] = tmp_path.glob("out/cells/*/result.json")
    metrics = json.loads(file.read_text())["metrics"]
    assert metrics["data/rows_read"] == 1200
    assert metrics["data/rows_dropped/missing"] == 80
    assert metrics["data/rows"] == 1120
    assert metrics["data/cells/no/man"] + metrics["data/cells/yes/man"] == 560


def test_markup_in_labels_is_printed_as_it_is(fairpriv, table):
    ended = fairpriv(*table("markup", "[bold]no", "[/b]yes"), "dataset.missing=drop", *SMALL)
    assert ended.status == 0, ended.err
    assert "fairness/delta/[/b]yes" in ended.out
    assert "fairness/delta/[bold]no" in ended.out


def test_an_empty_setting_is_honoured_and_a_misspelt_one_named(fairpriv):
    told = fairpriv("dataset=compas", "--cfg", "job").out
    assert "days_b_screening_arrest:" in told
    told = fairpriv("dataset=compas", "dataset.filters={}", "--cfg", "job").out
    assert "days_b_screening_arrest:" not in told
    assert "filters: {}" in told
    told = fairpriv("dataset=bias_in_bios", "dataset.values={}", "--cfg", "job").out
    assert "values: {}" in told
    ended = fairpriv("dataset=compas", "dataset.filtres={}")
    assert (ended.status, ended.err) == (2, "fairpriv: unknown key dataset.filtres (did you mean 'dataset.filters'?)\n")

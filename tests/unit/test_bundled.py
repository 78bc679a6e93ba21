"""The bundled texts: enough of them, complete, and evaluation apart from training."""

import csv
import re
from importlib.resources import files

import pytest

DIMENSIONS = ("fairness", "privacy", "safety", "truthfulness")
PAIRS = ["prompt", "response"]
EXPECTED = {"general": (PAIRS, 60)} | {
    f"{dimension}_{split}": columns_and_rows
    for dimension in DIMENSIONS
    for split, columns_and_rows in {
        "safe": (PAIRS, 60),
        "unsafe": (PAIRS, 30),
        "evaluate": (["prompt"], 60),
        "benign": (["prompt"], 40),
    }.items()
}
EXPECTED["truthfulness_evaluate"] = (["prompt", "correct", "wrong"], 60)


def read(name):
    with files("fairpriv.data").joinpath(f"bundled/{name}.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        return list(reader), reader.fieldnames


def prompts(names):
    """Prompts as a reader tells them apart: without case, punctuation and spacing."""
    return [" ".join(re.findall(r"\w+", row["prompt"].lower())) for name in names for row in read(name)[0]]


def test_the_folder_holds_the_files_expected():
    names = {path.name for path in files("fairpriv.data").joinpath("bundled").iterdir()}
    assert names == {f"{name}.csv" for name in EXPECTED} | {"README.md"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_has_its_columns_enough_rows_and_no_empty_field(name):
    columns, at_least = EXPECTED[name]
    rows, found = read(name)
    assert found == columns
    assert len(rows) >= at_least
    for row in rows:
        assert list(row) == columns  # a row with too many fields has the key None
        assert all(value and value == value.strip() for value in row.values()), row


def test_no_prompt_occurs_twice_in_any_of_the_files():
    everything = prompts(EXPECTED)
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_nothing_trained_on_is_nearly_what_is_evaluated(dimension):
    measured = [set(prompt.split()) for prompt in prompts([f"{dimension}_evaluate"])]
    trained = [
        set(prompt.split()) for prompt in prompts(name for name, (columns, _) in EXPECTED.items() if columns == PAIRS)
    ]
    assert max(len(a & b) / len(a | b) for a in measured for b in trained) < 0.5


def test_no_response_occurs_twice():
    responses = [
        row["response"] for name, (columns, _) in EXPECTED.items() if columns == PAIRS for row in read(name)[0]
    ]
    assert len(responses) == len(set(responses))


def test_no_true_answer_is_also_called_false_and_length_does_not_tell_them_apart():
    longer = []
    for row in read("truthfulness_evaluate")[0]:
        correct, wrong = ([text.strip() for text in row[name].split(";")] for name in ("correct", "wrong"))
        assert correct[0]
        assert wrong[0]
        answers = [text.lower() for text in correct + wrong]
        assert len(set(answers)) == len(answers), row
        longer.append(len(correct[0]) > sum(map(len, wrong)) / len(wrong))
    assert 0.3 < sum(longer) / len(longer) < 0.6

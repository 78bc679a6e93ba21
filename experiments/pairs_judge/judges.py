"""The AUC of `judge=pairs` on real pairs, beside what the pattern judge says of the same responses.

python experiments/pairs_judge/judges.py FOLDER [N]      FOLDER with the CSV files of the SPIN authors; N pairs a split
"""

import sys
from pathlib import Path

from fairpriv.cli import CONF
from fairpriv.config.compose import build, compose, plain
from fairpriv.functional.verdicts import auc
from fairpriv.language_models.judges.refusal import Refusal
from fairpriv.store import Store

folder, samples = Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else "null"
words = ["dataset=pairs", "dimension=[spin_fairness,spin_privacy]", "judge=pairs", f"judge.samples={samples}"]
config = plain(compose(CONF, [], [*words, f"paths.data={folder.parent}"]))
judge = build(config, "judge")
print("| dimension | judge | AUC | sensitivity | specificity |\n|---|---|---|---|---|")
for name in config["dimensions"]:
    fitted = judge.of(build(config["dimensions"], name, name=name), Store(config["paths"]["root"]))
    found = fitted.fit
    said = {}
    for split, examples in {"safe": fitted.safe, "unsafe": fitted.unsafe}.items():
        pairs = dict.fromkeys((e.prompt, str(e.response)) for e in examples)  # of copies one is measured
        said[split] = [bool(v.safe) for v in Refusal().judge(*map(list, zip(*pairs, strict=True)))]
    words_auc = auc([*said["safe"], *said["unsafe"]], [True] * len(said["safe"]) + [False] * len(said["unsafe"]))
    rows = {
        "pairs": (found["auc"], found["found_safe"], found["found_unsafe"]),
        "refusal": (words_auc, sum(said["safe"]), len(said["unsafe"]) - sum(said["unsafe"])),
    }
    for judged, ((value, (low, high)), safe, unsafe) in rows.items():
        shares = [f"{k / n:.3f} ({k}/{n})" for k, n in ((safe, found["safe"]), (unsafe, found["unsafe"]))]
        print(f"| {name} | {judged} | {value:.3f} ({low:.3f} to {high:.3f}) | {' | '.join(shares)} |", flush=True)
    slope, ends = found["calibration"]
    print(f"<!-- {name}: calibration slope {slope:.2f} ({ends[0]:.2f} to {ends[1]:.2f}) -->", flush=True)

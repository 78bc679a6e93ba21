"""Count how the gaps of this study's cells stand to the bound: `python experiments/bound/table.py`."""

from collections import Counter
from pathlib import Path

from fairpriv.report.finding import find_results
from fairpriv.report.game_plots import GAPS, STANDINGS, standing


def table() -> list[str]:
    """Lines of a Markdown table, a line for each gap and data set."""
    cells = find_results([Path(__file__).parent / "results"])[0]
    lines = ["| gap | data | cells | degenerate | " + " | ".join(STANDINGS) + " |", "|---|---|" + "---:|" * 6]
    for gap, label in GAPS:
        for data in sorted({cell.config["dataset"]["name"] for cell in cells}):
            of = [cell for cell in cells if cell.config["dataset"]["name"] == data]
            count = Counter(standing(cell, gap) for cell in of)
            marked = sum(bool(cell.degenerate) for cell in of)
            numbers = [len(of), marked, *(count[kind] for kind in STANDINGS)]
            lines.append(f"| {label} | {data} | {' | '.join(map(str, numbers))} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))

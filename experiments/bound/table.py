"""Count how the gaps of this study's cells stand to the bound: `python experiments/bound/table.py`."""

from collections import Counter
from pathlib import Path

from fairpriv.report.finding import find_results
from fairpriv.report.game_plots import GAPS, STANDINGS, standing
from fairpriv.result import Result


def table() -> list[str]:
    """Write a Markdown table: of each gap a line for each data set, each defence, and alpha of 0.5 and above."""
    cells = find_results([Path(__file__).parent / "results"])[0]
    lines = ["| gap | of | cells | degenerate | " + " | ".join(STANDINGS) + " |", "|---|---|" + "---:|" * 6]
    for gap, label in GAPS:
        parts: dict[str, list[Result]] = {}
        for cell in cells:
            alike = "alpha 0.5" if cell.config["game"]["alpha"] == 0.5 else "alpha above 0.5"
            for part in (cell.config["dataset"]["name"], cell.config["defense"]["name"], alike):
                parts.setdefault(part, []).append(cell)
        for part, of in sorted(parts.items()):
            count = Counter(standing(cell, gap) for cell in of)
            numbers = [len(of), sum(bool(cell.degenerate) for cell in of), *(count[kind] for kind in STANDINGS)]
            lines.append(f"| {label} | {part} | {' | '.join(map(str, numbers))} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))

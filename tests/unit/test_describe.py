import pytest

from fairpriv.config.compose import describe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# @package _global_\n# A short one\n# More of it\nname: a\n", "A short one"),
        ("# A sentence that goes\n# on below; and more\nname: a\n", "A sentence that goes on below"),
        (f"# {'long ' * 21}by Levy\n# Smith et al. 2021. More\n", f"{'long ' * 21}by Levy Smith et al. 2021"),
        ("# Ends here:\n# fairpriv dataset=a\n", "Ends here:"),
        ("name: a\n# no description\n", ""),
    ],
)
def test_ls_cuts_no_sentence(tmp_path, text, said):
    (tmp_path / "a.yaml").write_text(text)
    assert describe(tmp_path / "a.yaml") == said

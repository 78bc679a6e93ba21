"""Dimensions of a classifier from the command line: ours, and those of the page "Which dimension do I need?"."""

import re
from pathlib import Path

import pytest

from fairpriv.report.finding import find_results
from fairpriv.result import Result

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "dimensions.md"


@pytest.fixture
def own(mine, tmp_path) -> list[str]:
    """A folder of the user's with the page's dimensions (metric, class, game), and words for small cells."""
    text = PAGE.read_text(encoding="utf-8")
    skill, surprise = re.findall(r"```yaml\n(.*?)```", text, re.S)
    sureness, membership = re.findall(r"```python\n(.*?)```", text, re.S)
    folder = tmp_path / "own"
    (folder / "dimension").mkdir(parents=True)
    (folder / "dataset").symlink_to(mine / "dataset")
    (folder / "dimension" / "skill.yaml").write_text(skill)
    (folder / "sureness.py").write_text(sureness)
    (folder / "my_membership.py").write_text(membership)
    (folder / "dimension" / "surprise.yaml").write_text(surprise)
    (folder / "dimension" / "sure.yaml").write_text("# @package dimensions.sure\n_target_: sureness.Sureness\n")
    return ["--config-dir", str(folder), "dataset=people", "debug=fast", "paths.root=out"]


def results() -> list[Result]:
    found, left_out = find_results([Path("out")])
    assert left_out == []
    return found


def test_a_yaml_and_a_small_class_of_the_user_s_give_metrics_columns_axes_and_directions(fairpriv, own):
    few = ["+dimensions.surprise.models=8", "+dimensions.surprise.victims=2"]
    ended = fairpriv("-m", *own, "defense=none,rehearsal", "dimension=[skill,sure,surprise]", "game.rows=140", *few)
    assert ended.status == 0, ended.err
    for result in results():
        assert -1 <= result.metrics["eval/skill/mcc"] <= 1
        assert 0 <= result.metrics["eval/sure/margin"] <= 0.5
        about = result.described["eval/skill/mcc"]
        assert (about.better, about.low, about.high, about.headline) == ("greater", -1, 1, True)
        assert 0 <= result.metrics["eval/surprise/surprise_auc"] <= 1
        assert result.described["eval/surprise/surprise_auc"].headline
    assert "mcc" in ended.out
    report = next(Path("out").rglob("report.html")).read_text(encoding="utf-8")
    assert "eval/skill/mcc" in report
    assert "eval/sure/margin" in report
    assert "eval/surprise/surprise_auc" in report
    ended = fairpriv("compare", "out", "--pareto", "eval/skill/mcc,eval/sure/margin")
    assert ended.status == 0, ended.err


def test_a_search_takes_a_dimension_s_direction_from_it(fairpriv, own):
    pytest.importorskip("optuna")
    search = ["hydra/sweeper=search", "hydra.sweeper.trials=2", "hydra.sweeper.objectives=[eval/skill/mcc]"]
    ended = fairpriv("-m", *own, *search, "dimension=[skill]", "training.lr=interval(0.001,0.01)", "game.rows=140")
    assert ended.status == 0, ended.err
    best = max(result.metrics["eval/skill/mcc"] for result in results())
    assert f"{best:.3f}" in ended.out or f"{best:.4g}" in ended.out


def test_every_dimension_of_ours_is_measured_in_one_cell(fairpriv, own):
    names = "utility,group_fairness,calibration,robustness,membership,attribute,distribution,proportion"
    small = ["dimensions.membership.models=8", "dimensions.membership.victims=2", "game.rows=140"]
    small += ["game.shadows=4", "game.victims=2"]
    small += ["dimensions.proportion.shadows=3", "dimensions.proportion.victims=2"]
    ended = fairpriv(*own, f"dimension=[{names}]", *small)
    assert ended.status == 0, ended.err
    (result,) = results()
    headlines = {name.split("/")[1] for name, about in result.described.items() if about.headline}
    games = {"distribution": "black_box_meta_classifier", "proportion": "share_regression"}  # named by their attacks
    assert {games.get(name, name) for name in names.split(",")} <= headlines
    assert {"attack/kl/accuracy", "pool/accuracy"} <= set(result.metrics)
    assert "attacks" in result.artifacts
    assert result.metrics["eval/membership/lira_auc_floor"] == 0.5
    assert "dimensions" in result.seconds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dimension=[privacy]", "dimension=privacy is for task=language_model, and dataset=people of task=classifier"),
        ("dimension=[calibration] defense=threshold_optimizer", "dimension=calibration needs probabilities, which"),
        ("dimension=[calibration] defense=label_only", "needs probabilities, which defense=label_only does not give"),
        ("dimension=[membership] model.dropout=0.5", "dimensions such as membership train pools of model=mlp"),
        (
            "dimension=[robustness] model.dropout=0.5 dimensions.robustness.label_noise=0.1",
            "train pools of model=mlp with model.dropout=0",
        ),
        (
            "dimension=[robustness] dimensions.robustness.label_noise=10",
            "dimensions.robustness.label_noise=10: a share from 0 to 1",
        ),
        ("dimension=[distribution] attack=[kl]", "attack=[...] and dimension=distribution play the same game"),
        ("dimension=[distribution] game.shadows=1", "attack black_box_meta_classifier needs shadow models and has 1"),
        ("dimension=[membership] dimensions.membership.models=7", "must be even, and at least 8"),
        (
            "dimension=[robustness] dimensions.robustness.epsilon=-1",
            "dimensions.robustness.epsilon=-1: must be at least",
        ),
    ],
)
def test_what_cannot_be_measured_gets_one_line(fairpriv, own, words, message):
    ended = fairpriv(*own, *words.split(), "game.rows=140")
    assert ended.status == 2, ended
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert "rows read" not in ended.err + ended.out  # it shows before any data are read
    assert not list(Path("out").glob("cells/*/result.json"))  # and leaves no failed cell

"""Every defence of a classifier that comes with fairpriv, in a small adaptive game from the command line."""

from pathlib import Path

from fairpriv.cli import CONF
from fairpriv.config.compose import compose
from fairpriv.config.schema import tasks_of
from fairpriv.report.finding import find_results


def for_classifiers(name: str) -> bool:
    target = compose(CONF, [], ["dataset=adult", f"defense={name}"]).defense._target_
    return tasks_of("defense", target) == ["classifier"]


def test_every_defence_plays_a_whole_game(fairpriv, mine):
    own = {path.stem for path in (CONF / "defense").glob("*.yaml")} - {"top1"}  # hides nothing with two labels
    names = sorted(filter(for_classifiers, own))
    alone = "exponentiated_gradient"  # many fits a model
    others = ",".join(name for name in names if name != alone)
    words = ["dataset=people", "debug=fast", "paths.root=out", "attack=[loss_test]", "game.repeats=1"]
    words += ["game.shadows=3", "game.victims=2", "retry=none"]
    for asked in ([f"defense={others}"], [f"defense={alone}", "defense.max_iter=1"]):
        ended = fairpriv("-m", "--config-dir", str(mine), *words, *asked)
        assert ended.status == 0, ended.err
    results, left_out = find_results([Path("out")])
    assert left_out == []
    assert sorted(result.config["defense"]["name"] for result in results) == names
    for result in results:
        assert result.status == "completed"
        assert "attack/loss_test/leakage" in result.metrics, result.config["defense"]["name"]

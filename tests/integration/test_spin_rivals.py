"""Rivals of SPIN from the command line, on a random language model with two layers."""

import pytest

from fairpriv.language_models import observation
from fairpriv.report.finding import find_results

STRONG = {"steering": ["defense.coefficient=20"]}  # enough to turn answers of a random model


@pytest.mark.parametrize("rival", STRONG)
def test_a_rival_stands_beside_the_untouched_model_and_its_answers_are_kept_apart(
    fairpriv, words, tmp_path, monkeypatch, rival
):
    asked = []
    answer = observation.respond

    def spy(model, tokenizer, prompts, **options):
        asked.append(len(prompts))
        return answer(model, tokenizer, prompts, **options)

    monkeypatch.setattr(observation, "respond", spy)
    for more in ([f"defense=none,{rival}"], [f"defense={rival}", *STRONG[rival], "retry=all"]):
        ended = fairpriv(*words, *more)
        assert ended.status == 0, ended.err
    results, left_out = find_results([tmp_path / "out"])
    assert left_out == []
    assert [result.config["defense"]["name"] for result in results] == ["none", rival, rival]
    assert all(result.status == "completed" for result in results)
    assert len(asked) == 3  # of the untouched model once, and of each rival
    said = [(path.parent / "responses.jsonl").read_text() for path in tmp_path.glob("out/cells/*/result.json")]
    assert len(set(said)) == 3
    for result in results[1:]:
        assert {"eval/fairness/awareness_change", "eval/utility/perplexity"} <= set(result.metrics)
    fairpriv(*words, f"defense={rival}", *STRONG[rival], "retry=all")
    assert len(asked) == 3  # a cell that is run again reads its answers

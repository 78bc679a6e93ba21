"""Rivals of SPIN from the command line, on a random language model with two layers."""

from fairpriv.language_models import observation
from fairpriv.language_models.models.pretrained import PretrainedLM
from fairpriv.report.finding import find_results


def test_another_coefficient_is_another_model_with_answers_of_its_own(fairpriv, words, tmp_path, monkeypatch):
    asked = []
    answer = observation.respond

    def spy(model, tokenizer, prompts, **options):
        asked.append(len(prompts))
        return answer(model, tokenizer, prompts, **options)

    monkeypatch.setattr(observation, "respond", spy)
    ended = fairpriv(*words, "defense=steering", "defense.coefficient=1,20")
    assert ended.status == 0, ended.err
    results, left_out = find_results([tmp_path / "out"])
    assert left_out == []
    assert [result.status for result in results] == ["completed"] * 2
    assert len(asked) == 3  # the untouched model, and either steered one
    said = {(path.parent / "responses.jsonl").read_text() for path in tmp_path.glob("out/cells/*/result.json")}
    assert len(said) == 2
    for result in results:
        assert {"eval/fairness/awareness_change", "eval/utility/perplexity", "edit/steering/1"} <= set(result.metrics)


def test_what_dpo_cannot_compare_is_refused_before_a_model_is_loaded(fairpriv, words, monkeypatch):
    monkeypatch.setattr(PretrainedLM, "load", None)
    alone = "~dimensions.privacy.train.unsafe"
    for more, message in (
        ([], "dimensions.privacy.train: no prompt has both a safe and an unsafe response"),
        ([alone], "dimensions.privacy.train has no split 'unsafe'; it has safe"),
        ([alone, "defense.pairing=any"], "dimensions.privacy.train has no split 'unsafe'; it has safe"),
    ):
        ended = fairpriv(*words, "hydra.mode=RUN", "defense=dpo", *more)
        assert ended.status == 2
        assert f"fairpriv: {message}" in ended.err

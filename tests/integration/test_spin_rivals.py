"""Rivals of SPIN from the command line, on a random language model with two layers."""

from fairpriv.language_models import observation
from fairpriv.report.finding import find_results

RIVALS = ["steering", "task_arithmetic"]


def test_rivals_stand_beside_the_untouched_model_and_their_answers_are_kept(fairpriv, words, tmp_path, monkeypatch):
    asked = []
    answer = observation.respond

    def spy(model, tokenizer, prompts, **options):
        asked.append(len(prompts))
        return answer(model, tokenizer, prompts, **options)

    monkeypatch.setattr(observation, "respond", spy)
    grid = [f"defense=none,{','.join(RIVALS)}", "retry=all"]
    ended = fairpriv(*words, *grid)
    assert ended.status == 0, ended.err
    results, left_out = find_results([tmp_path / "out"])
    assert left_out == []
    assert [result.config["defense"]["name"] for result in results] == ["none", *RIVALS]
    for result in results[1:]:
        assert result.status == "completed"
        assert {"eval/fairness/awareness_change", "eval/utility/perplexity"} <= set(result.metrics)
    assert len(asked) == len(results)
    ended = fairpriv(*words, *grid)
    assert ended.status == 0, ended.err
    assert len(asked) == len(results)  # the same models are asked nothing again
    assert [result.metrics for result in find_results([tmp_path / "out"])[0]] == [result.metrics for result in results]

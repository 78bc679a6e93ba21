"""A machine with Slurm: cells are trained by processes of their own, whatever batch system there is."""

import pytest

from fairpriv.report.finding import find_results


@pytest.fixture(params=["on the PATH", "in a job"])
def slurm(request, tmp_path, monkeypatch):
    """A machine that has ``srun``; and one on which a batch job with two tasks has begun."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    if request.param == "in a job":
        job = {"NTASKS": "2", "NTASKS_PER_NODE": "2", "PROCID": "1", "LOCALID": "1", "NODEID": "0", "JOB_NAME": "x"}
        for name, value in job.items():
            monkeypatch.setenv(f"SLURM_{name}", value)


def test_a_cell_is_trained_here_and_nothing_is_said_of_slurm(fairpriv, small, slurm, tmp_path):
    attack = ["attack=[loss_test]", "game.shadows=2", "game.victims=2"]  # whose pools are trained, too
    ended = fairpriv(*small, "logger=none", "defense=fine_tune", *attack)
    assert ended.status == 0, ended.err
    assert "srun" not in ended.out + ended.err
    assert [result.status for result in find_results([tmp_path / "out"])[0]] == ["completed"]

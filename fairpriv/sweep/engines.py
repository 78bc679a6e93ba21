"""Launchers of other packages (Slurm, Ray): their jobs are counted when they end, and one that is lost fails alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from fairpriv.errors import InputError
from fairpriv.patches import lost_jobs_fail
from fairpriv.sweep.progress import SweepProgress


def watched(launcher: Launcher) -> Launcher:
    """The launcher, watched if it does not tell by itself what becomes of its jobs."""
    display = SweepProgress.current
    return launcher if display is None or display.shown else Watched(launcher, display)


class Watched(Launcher):
    """Another launcher, whose errors become one line and whose jobs are counted when all have ended."""

    def __init__(self, launcher: Launcher, display: SweepProgress) -> None:
        self.launcher, self.display = launcher, display

    def setup(self, **_: Any) -> None:
        """Nothing: the launcher has what it needs."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; what they return is in their order.

        Raises:
            InputError: the launcher cannot run them, as there is no Slurm, say; or lost them.
        """
        try:
            with lost_jobs_fail():
                returned = self.launcher.launch(job_overrides, initial_job_idx)
        except (InputError, OSError):
            raise
        except Exception as error:
            text = next(iter(str(error).strip().splitlines()), "")
            raise InputError(f"hydra/launcher={self.display.launcher}: {type(error).__name__}: {text}") from error
        for number, (job, words) in enumerate(zip(returned, job_overrides, strict=True), initial_job_idx):
            self.display.end(number, job.overrides or words, job._return_value)
        return returned

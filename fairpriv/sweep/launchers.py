"""Launchers of other packages, such as Slurm's: jobs are counted when all have ended, and a lost one fails alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from fairpriv.errors import InputError
from fairpriv.patches import lost_jobs_fail
from fairpriv.sweep.progress import SweepProgress


def watched(launcher: Launcher) -> Launcher:
    """Return the launcher, wrapped in `Watched` if it does not itself report on its jobs."""
    display = SweepProgress.current
    return launcher if display is None or display.shown else Watched(launcher, display)


class Watched(Launcher):
    """Another launcher, with one-line errors and with jobs that are counted when all have ended."""

    def __init__(self, launcher: Launcher, display: SweepProgress) -> None:
        self.launcher, self.display = launcher, display

    def setup(self, **_: Any) -> None:
        """Do nothing, since the launcher is set up already."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs, and return their results in order.

        Raises:
            InputError: the launcher cannot run the jobs, for example without Slurm, or has lost them.
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

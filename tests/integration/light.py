"""A job that trains nothing, in place of a cell: what launchers do with it shows in ``paths.root``/notes."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from hydra.experimental.callback import Callback

from fairpriv import cli


def notes(cfg) -> Path:
    folder = Path(cfg.paths.root, "notes")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def until(true, seconds: float = 120) -> None:
    """Wait, on cores that others may use too."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def job(cfg) -> dict[str, str | None]:
    """What it does stands in ``game.property``: to wait for another (meet, join) or a file, make noise, die."""
    what = str(cfg.game.property)
    folder = notes(cfg)
    here = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    note = {"pid": os.getpid(), "torch": "torch" in sys.modules, **here}
    (folder / f".{what}").write_text(json.dumps(note))
    (folder / f".{what}").rename(folder / f"{what}.began")  # whole, for those who look
    if pair := next((name for name in ("meet", "join") if what.startswith(name)), None):
        until(lambda: len(list(folder.glob(f"{pair}*.began"))) == 2)
    if what.startswith("wait"):
        until((folder / "go").exists)
    if what == "noise":
        print("said to stdout")
        print("said to stderr", file=sys.stderr)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "leave":
        print("words before the last")
        print("last words", file=sys.stderr)
        os._exit(3)
    (folder / f"{what}.ended").touch()
    return {"id": None, "status": "completed", "error": None}


class Noting(Callback):
    """A user's callback: notes the process in which a job began and ended."""

    def on_job_start(self, config, **kwargs):
        (notes(config) / f"{config.game.property}.callback").write_text(str(os.getpid()))

    def on_job_end(self, config, job_return, **kwargs):
        (notes(config) / f"{config.game.property}.callback").open("a").write(f" {os.getpid()}")


if __name__ == "__main__":
    import light  # by which name other processes find the job

    cli.job = light.job
    cli.main()

"""Weights & Biases beside a run, which nothing that happens there may hold up or end.

At the start a server that does not answer is an error, since the user asked for it. From then on it is a nuisance:
metrics.jsonl has every figure, and what wandb has kept, in `<run>/wandb/run-…`, can be sent later.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt.config import RunConfig
from gpt.options import UserError, say, to_dict

# Seconds that the server has to begin a run, and to take the rest at its end. WANDB_INIT_TIMEOUT and
# WANDB_FINISH_TIMEOUT, in the environment, say otherwise.
LIMITS = {"init_timeout": 30.0, "finish_timeout": 60.0}


class Wandb:
    """A Weights & Biases run, or nothing where `wandb.mode=disabled`."""

    def __init__(self, config: RunConfig, run_dir: Path, run_id: str | None, under_way: bool = False) -> None:
        """Raises UserError where it cannot begin, within about a minute; says so where the run is `under_way`."""
        self.run: Any = None
        self.run_dir, self.broken = run_dir, False
        if config.wandb.mode == "disabled":
            return
        try:
            self.run = start(config, run_dir, run_id)
        except Exception as error:  # of the library, its settings, its processes or the server
            refusal = f"wandb.mode={config.wandb.mode}: {why_not(error)}"
            if not under_way:
                raise UserError(f"{refusal}; {remedy(error, config.wandb.mode)}") from None
            say(f"{refusal}. The run goes on without; {run_dir / 'metrics.jsonl'} has every figure.")

    @property
    def id(self) -> str | None:
        return None if self.run is None else self.run.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.run is None or self.broken:
            return
        try:
            self.run.log(dict(values), step=step)
        except Exception as error:  # whatever it is, it is not worth a run
            self.broken = True
            say(f"Weights & Biases has failed at step {step:,} and gets no more of this session: {reason(error)}")

    def close(self, at_once: bool = False) -> None:
        """Send the rest, within about a minute; else, or where that is to be `at_once`, say how to."""
        if self.run is None:
            return
        folder = Path(self.run.dir).parent
        try:
            if not at_once:
                self.run.finish()
        except Exception as error:
            self.broken = True
            say(f"Weights & Biases has not received all of the run: {reason(error)}")
        if self.broken or at_once:
            send = f"wandb sync --include-online {shlex.quote(str(folder))}"
            say(f"Every figure is in {self.run_dir / 'metrics.jsonl'}. To send what wandb has kept: {send}")
        if self.broken and not at_once:
            with suppress(Exception):  # now: at exit it would show a traceback where its process is gone
                sys.modules["wandb"].teardown()


def start(config: RunConfig, run_dir: Path, run_id: str | None) -> Any:
    import wandb  # slow to import, so only where it is asked for

    limits: dict[str, Any] = {
        name: seconds for name, seconds in LIMITS.items() if f"WANDB_{name.upper()}" not in os.environ
    }
    return wandb.init(
        project=config.wandb.project,
        mode=config.wandb.mode,  # type: ignore[arg-type]
        dir=run_dir,
        id=run_id,
        name=run_dir.name,
        resume="allow",
        config=to_dict(config),
        settings=wandb.Settings(finish_timeout_raises=True, **limits),
    )


def why_not(error: Exception) -> str:
    what = "wandb cannot be imported" if isinstance(error, ImportError) else "Weights & Biases cannot begin the run"
    return f"{what}: {reason(error)}"


def remedy(error: Exception, mode: str) -> str:
    if isinstance(error, ImportError):
        return "install it again (pip install --force-reinstall wandb), or use wandb.mode=disabled"
    if "project" in str(error):
        return "choose another wandb.project, or use wandb.mode=disabled"
    if mode == "online":
        return "use wandb.mode=offline, and `wandb sync` later; or `wandb login`, where it knows nobody here"
    return "use wandb.mode=disabled"


def reason(error: Exception) -> str:
    """In one line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__

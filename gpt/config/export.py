"""Options of `export.py`."""

from __future__ import annotations

from dataclasses import dataclass

from gpt.config.device import CHECKPOINT, PRECISIONS, checkpoint_mistakes
from gpt.options import Mistake, Options, option


@dataclass(frozen=True)
class ExportConfig(Options):
    """Everything `export.py` takes."""

    checkpoint: str = option("", CHECKPOINT, free_text=True)
    output: str = option("", "folder to write the model to; it must be new or empty", free_text=True)
    dtype: str = option("fp32", "type of the weights: fp32 as trained, or half of the size", choices=PRECISIONS)
    max_shard_gb: float = option(
        5.0, "larger weights are split into files of at most so many 10^9 bytes", above=0, high=1000
    )

    def mistakes(self) -> list[Mistake]:
        found = checkpoint_mistakes(self.checkpoint)
        if not self.output:
            found.append(Mistake("output", "is missing; name the folder to write, as output=my-model"))
        return found

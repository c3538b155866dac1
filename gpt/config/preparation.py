"""Options of `data/prepare.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpt.config.training import RunConfig
from gpt.options import Mistake, option


@dataclass(frozen=True)
class PreparationConfig(RunConfig):
    """Everything `data/prepare.py` takes: what `train.py` does, so that its command can be reused, and more."""

    shard: str = option(
        "0/1",
        "i/n: this is process i (from 0 on) of n that prepare the corpus together; their machines share "
        "data.prepared_dir",
    )

    @property
    def shard_of(self) -> tuple[int, int]:
        """i and n."""
        index, _, count = self.shard.partition("/")
        return int(index), int(count)

    def mistakes(self) -> list[Mistake]:
        found = super().mistakes()
        if not re.fullmatch(r"[0-9]{1,6}/[0-9]{1,6}", self.shard) or not self.shard_of[0] < self.shard_of[1]:
            message = "is not i/n with i from 0 to n - 1; for four processes, give 0/4, 1/4, 2/4 and 3/4"
            found.append(Mistake("shard", message))
        return found

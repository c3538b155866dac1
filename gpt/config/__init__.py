"""Every option of Newleaf: its meaning, unit, default and validation, in frozen dataclasses.

Nothing here imports torch or Hydra, so `--help` is quick and any room of the house may use it. `gpt/cli.py` turns the
command line into these classes (the idea is lingua's: YAML becomes a dataclass at the door); code may also construct
them directly. `gpt/options.py` is the machinery behind them.
"""

from gpt.config.data import SOURCES, TOKENIZERS, DataConfig, TokenizerConfig
from gpt.config.model import DIALECTS, ModelConfig
from gpt.config.sampling import SampleConfig
from gpt.config.training import OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig, WandbConfig

__all__ = [
    "DIALECTS",
    "SOURCES",
    "TOKENIZERS",
    "DataConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "SampleConfig",
    "ScheduleConfig",
    "TokenizerConfig",
    "TrainConfig",
    "WandbConfig",
]

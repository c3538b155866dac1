"""Every option of Newleaf: its meaning, unit, default and validation, in frozen dataclasses.

Nothing here imports torch or Hydra, so `--help` is quick and any room of the house may use it. `gpt/composition.py`
turns the command line into these classes (the idea is lingua's: YAML becomes a dataclass at the door); code may also
construct them directly. `gpt/options.py` is the machinery behind them.
"""

from gpt.config.data import SOURCES, TOKENIZERS, DataConfig, TokenizerConfig
from gpt.config.evaluation import EvaluateConfig
from gpt.config.export import ExportConfig
from gpt.config.model import DIALECTS, ModelConfig
from gpt.config.preparation import PreparationConfig
from gpt.config.sampling import SampleConfig
from gpt.config.training import (
    LORA_TARGETS,
    LoRAConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    WandbConfig,
)

__all__ = [
    "DIALECTS",
    "LORA_TARGETS",
    "SOURCES",
    "TOKENIZERS",
    "DataConfig",
    "EvaluateConfig",
    "ExportConfig",
    "LoRAConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PreparationConfig",
    "RunConfig",
    "SampleConfig",
    "ScheduleConfig",
    "TokenizerConfig",
    "TrainConfig",
    "WandbConfig",
]

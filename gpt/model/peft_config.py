"""The `adapter_config.json` of PEFT's adapter folders: what is written, what is understood, what is refused.

Source: PEFT's `LoraConfig` (the keys and their defaults).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.model.find import HubModel, is_local
from gpt.model.tensor_files import read_object
from gpt.options import UserError

ADAPTER_CONFIG = "adapter_config.json"

# Keys with the values that describe the function computed here, the value that an absent key means first.
FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": (None, "CAUSAL_LM"),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),  # the others change the base's weights too
}
# Keys that are read, that the tensors answer better, or that matter only to training.
FREE_KEYS = (
    {"base_model_name_or_path", "revision", "r", "lora_alpha", "use_rslora"}
    | {"target_modules", "exclude_modules", "layers_pattern", "fan_in_fan_out", "auto_mapping"}
    | {"peft_version", "inference_mode", "lora_dropout", "runtime_config", "ensure_weight_tying"}
    | {"megatron_core", "qalora_group_size", "loftq_config", "eva_config"}  # of what other keys switch on
)
# Every other key, known or not, must be empty: PEFT adds a key for each new variant of LoRA.
EMPTY: tuple[Any, ...] = (None, False, [], {}, "")


@dataclass(frozen=True)
class AdapterConfig:
    """What a folder's configuration says, apart from what its tensors do."""

    base: str  # a path, a Hub id or ID@REVISION; empty where none is named
    rank: int
    alpha: float  # corrections are scaled by alpha / rank


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def base_of(folder: Path) -> str:
    """The base model that an adapter folder names: a path, a Hub id or ID@REVISION. Raises UserError."""
    if base := read_adapter_config(folder).base:
        return base
    raise UserError(
        f"{folder / ADAPTER_CONFIG} names no base model; write its path or Hub id as base_model_name_or_path"
    )


def write_adapter_config(folder: Path, config: AdapterConfig, targets: Sequence[str], transposed: bool) -> None:
    """Write `adapter_config.json`; `targets` are the ends of the dialect's module names, `transposed` its Conv1D."""
    hub = None if is_local(config.base) else HubModel.parse(config.base)
    keys = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": hub.repository if hub else config.base,
        "revision": hub.revision if hub else None,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if float(config.alpha).is_integer() else config.alpha,  # PEFT declares an int
        "lora_dropout": 0.0,
        "target_modules": list(targets),
        "fan_in_fan_out": transposed,
        "bias": "none",
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(keys, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read `adapter_config.json`. Raises UserError naming each key that cannot be represented."""
    path = folder / ADAPTER_CONFIG
    try:
        keys = read_object(path)
    except FileNotFoundError:
        raise UserError(f"{folder} is not an adapter folder: it has no {ADAPTER_CONFIG}") from None
    if refused := refusals(keys):
        raise UserError(f"{path}: these adapters cannot be represented: " + "; ".join(refused))
    rank, alpha = keys["r"], float(keys["lora_alpha"])
    if keys.get("use_rslora"):  # Kalajdzievski 2023: alpha / sqrt(r) instead
        alpha *= math.sqrt(rank)
    base, revision = keys.get("base_model_name_or_path") or "", keys.get("revision")
    return AdapterConfig(base if is_local(base) else str(HubModel(base, revision)), rank, alpha)


def refusals(keys: Mapping[str, Any]) -> list[str]:
    """Every key whose value has no counterpart here, in words."""
    found = []
    for name, allowed in FIXED_KEYS.items():
        if (value := keys.get(name, allowed[0])) not in allowed:
            found.append(f"{name}={value!r} (only {' or '.join(map(repr, allowed))})")
    for name, value in keys.items():
        if name not in FREE_KEYS and name not in FIXED_KEYS and value not in EMPTY:
            found.append(f"{name}={value!r} (only without)")
    rank, alpha = keys.get("r"), keys.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        found.append(f"r={rank!r} (only a positive whole number)")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= 1e6:
        found.append(f"lora_alpha={alpha!r} (only a number)")
    if not isinstance(base := keys.get("base_model_name_or_path"), str | None):
        found.append(f"base_model_name_or_path={base!r} (only a path or a Hub id)")
    if not isinstance(revision := keys.get("revision"), str | None):
        found.append(f"revision={revision!r} (only a branch, tag or commit)")
    return found

"""What makes two runs the same run, and what has changed between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt.config import ModelConfig, RunConfig
from gpt.options import UserError, from_dict, to_dict
from gpt.text.shards import Corpus
from gpt.text.streams import PairStream
from gpt.training.base import canonical
from gpt.training.initial import resolved


def identity(config: RunConfig, corpus: Corpus) -> dict[str, Any]:
    """What must be the same for a run to be the same run; dropout and every other training option may change."""
    found: dict[str, Any] = {
        f"model.{name}": value for name, value in to_dict(config.model).items() if name != "dropout"
    }
    if config.init_from:
        found["init_from"] = canonical(config.init_from)
    if config.lora.rank:
        found |= {f"lora.{name}": value for name, value in to_dict(config.lora).items()}
    if isinstance(corpus.train, PairStream):  # those of similar length go together, so the order of data hangs on it
        found["pairs in a step"] = config.train.global_batch
    return found | {
        "tokenizer": f"{corpus.tokenizer.name} {corpus.tokenizer.fingerprint[:12]}",
        "corpus": f"{len(corpus.train):,} tokens {corpus.fingerprint[:12]}",
        "seed": config.seed,
        "optimizer": config.optimizer.name,
    }


def refuse_differences(
    saved: dict[str, Any], wanted: dict[str, Any], run_dir: Path, command: Callable[[], str] = str
) -> None:
    """Raises UserError where two identities are not those of the same run. `command`: what continues the saved one, or
    nothing."""
    if found := changes(with_resolved_model(saved), with_resolved_model(wanted)):
        if len(found) == 1 and saved.get("corpus") != wanted.get("corpus"):
            raise UserError(
                f"run_dir={run_dir} holds a run on another corpus: the text has changed since, or an option of data; "
                f"choose another run_dir, or restore them:\n  {found[0]}"
            )
        listed = "".join(f"\n  {change}" for change in found)
        continued = command()
        way_out = f", or continue it with\n  {continued}" if continued else ""
        raise UserError(f"run_dir={run_dir} holds another run:{listed}\nchoose another run_dir{way_out}")


def with_resolved_model(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity whose options of the model are all there, automatic values spelled out."""
    own = {name.removeprefix("model."): value for name, value in identity.items() if name.startswith("model.")}
    start = {"init_from": canonical(identity["init_from"])} if "init_from" in identity else {}
    return identity | start | {f"model.{name}": value for name, value in resolved(from_dict(ModelConfig, own)).items()}


def completed(saved: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """Options of an earlier version, with the defaults of those that it did not have."""
    groups = {
        name: completed(saved.get(name) or {}, value) for name, value in default.items() if isinstance(value, dict)
    }
    return default | saved | groups


# Where a tokenizer lies is no change: its own fingerprint tells, and that of a base moves into the run.
UNTOLD = {"tokenizer.": {"path"}}


def changes(saved: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two dicts of options, groups included, in words."""
    found = []
    for name in sorted((saved.keys() | wanted.keys()) - UNTOLD.get(prefix, set())):
        before, now = saved.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += changes(before, now, f"{prefix}{name}.")
        elif before != now:
            found.append(f"{prefix}{name}: {before} there, {now} now")
    return found

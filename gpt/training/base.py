"""The base of a run's adapters, kept in the run: adapters are nothing without the weights that they correct.

    <run>/base/    the model folder, and origin.json: what it was made from

The model that a run starts from may move: another run's `best`, a branch on the Hub, a folder that is written again.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from gpt.config import RunConfig
from gpt.model.adapters import BASE, FINGERPRINT, base_fingerprint, base_of, read_base_facts
from gpt.model.find import SMALL_FILES, HubModel, find_model
from gpt.model.huggingface import load_model
from gpt.model.tensor_files import read_object, weight_files
from gpt.options import UserError
from gpt.training.checkpoints import STEP_PREFIX, CheckpointFolder, publish

ORIGIN = "origin.json"


def hub_model(name: str) -> HubModel | None:
    """The model on the Hub that a name means; None for what is on this machine."""
    return None if Path(name).expanduser().exists() else HubModel.parse(name)


def canonical(init_from: str) -> str:
    """One spelling of what a run starts from: `gpt2` is openai-community/gpt2, `./x/` is x."""
    hub = hub_model(init_from)
    return str(hub) if hub else os.path.normpath(init_from)


def kept_base(init_from: str, run_dir: Path) -> Path | None:
    """The base that a run keeps, where it was made from `init_from`."""
    origin = run_dir / BASE / ORIGIN
    if not origin.is_file() or read_object(origin).get("init_from") != canonical(init_from):
        return None
    return run_dir / BASE


def keep_base(config: RunConfig) -> str:
    """Keep the base of a run's adapters, unless it is kept already, and return the name by which they call it.

    That is the Hub's id at its commit, or else the kept folder. Raises UserError where the base cannot be kept, or is
    no longer the one that the run's adapters were trained on.
    """
    run_dir = Path(config.run_dir).expanduser()
    latest, kept = CheckpointFolder(run_dir).latest(), run_dir.resolve() / BASE
    if kept_base(config.init_from, run_dir) is None:
        folder = find_model(config.init_from, "init_from").resolve()
        if latest:
            check_same_base(folder, latest, config.init_from)
        elif (kept / ORIGIN).is_file():
            shutil.rmtree(kept)  # of a start from another model that was ended before its first checkpoint
        if kept.exists() and (not kept.is_dir() or any(kept.iterdir())):
            raise UserError(f"run_dir={config.run_dir}: {kept} is in the way of the base that it will keep; move it")
        publish(kept, lambda partial: copy_model(folder, partial, config.init_from), run_dir / f".{BASE}.partial")
    hub = hub_model(config.init_from)
    if hub is None:
        return str(kept)
    return base_of(latest) if latest else f"{hub.repository}@{find_model(config.init_from, 'init_from').name}"


def check_same_base(folder: Path, latest: Path, init_from: str) -> None:
    """Refuse, before it is kept, a model that a run's adapters were not trained on."""
    if read_base_facts(latest).get(FINGERPRINT) not in (None, base_fingerprint(load_model(folder))):
        raise UserError(
            f"init_from={init_from} no longer has the weights that {latest} was trained on; put them back there, or "
            "choose another run_dir"
        )


def copy_model(folder: Path, into: Path, init_from: str) -> None:
    """Copy the files that we read of a model folder. Weights that never change in place, a checkpoint's and those in
    the Hub's cache, are linked where the file system can."""
    weights = weight_files(folder)
    in_run = folder.parent.name == "checkpoints" and folder.name.startswith(STEP_PREFIX)
    for path in weights:
        copy_or_link(path.resolve(), into / path.name, link=in_run or path.resolve().parent.name == "blobs")
    small = [path for path in folder.iterdir() if SMALL_FILES.fullmatch(path.name) and path not in weights]
    for path in [*small, *folder.glob(f"*{weights[0].suffix}.index.json")]:
        if path.is_file():
            shutil.copyfile(path, into / path.name)
    (into / ORIGIN).write_text(json.dumps({"init_from": canonical(init_from)}) + "\n", encoding="utf-8")


def copy_or_link(source: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system, or one without links
    shutil.copyfile(source, target)

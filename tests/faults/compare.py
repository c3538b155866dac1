"""Whether a run that was disturbed is as one that was not: its checkpoints whole, its files byte for byte the same."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

CHECKPOINTS, SUMS, STATE = "checkpoints", "trainer/SHA256SUMS", "trainer/state.json"
TIMES = {"elapsed_seconds", "train/tokens_per_second", "train/mfu"}  # of a line of metrics: what differs by nature
FREE = {"elapsed_seconds", "metrics_bytes", "wandb_id"}  # the same of state.json
UNSUMMED = {SUMS, "adapter_config.json"}  # people may edit where the base of adapters lies
PLACES = {"config.run_dir", "config.tokenizer.path"}  # in it: of adapters the tokenizer moves into the run
CHANGING = {STATE, SUMS}  # files of a checkpoint that hold times


def step_folders(run: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    return sorted(path for path in (run / CHECKPOINTS).glob("step-*") if path.is_dir())


def broken_checkpoints(run: Path) -> list[str]:
    """What is wrong with folders that have the name of a complete checkpoint, a line each."""
    wrong = []
    for folder in step_folders(run):
        try:
            check_checkpoint(folder)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            wrong.append(f"{folder.name} is not complete: {error!r}")
    return wrong


def check_checkpoint(folder: Path) -> None:
    """Raise where a checkpoint does not load, or has not the bytes that its checksums say."""
    names = files_of(folder)
    weights = {"model.safetensors", "adapter_model.safetensors"} & names
    needed = {STATE, "trainer/optimizer.safetensors", "trainer/random.safetensors", "tokenizer.json"}
    if not weights or needed - names:
        raise ValueError(f"missing: {', '.join(sorted(needed - names)) or 'weights'}")
    for name in names:
        if name.endswith(".json"):
            json.loads((folder / name).read_text(encoding="utf-8"))
        elif name.endswith(".safetensors"):
            with safe_open(folder / name, framework="pt") as opened:
                for tensor in opened.keys():  # noqa: SIM118 (it is no mapping)
                    opened.get_tensor(tensor)
    if SUMS not in names:
        return  # of before there were checksums
    sums = read_sums(folder)
    if unlisted := names - sums.keys() - UNSUMMED:
        raise ValueError(f"without a checksum: {', '.join(sorted(unlisted))}")
    for name, expected in sums.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
            raise ValueError(f"{name} has another checksum")


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def read_sums(folder: Path) -> dict[str, str]:
    """The checksums of a checkpoint by file, as `sha256sum` writes them."""
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (re.split(" [ *]", line, maxsplit=1) for line in lines)}


def write_sums(folder: Path) -> None:
    """Write the checksums anew, as of a checkpoint that was made with what it holds now; none where there were none."""
    if not (folder / SUMS).is_file():
        return
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in read_sums(folder)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def differences(expected: Path, run: Path) -> list[str]:
    """How a complete run differs from the undisturbed one, a line each: the last and the best checkpoint byte for byte,
    metrics and samples line for line, and that nothing half-made is left."""
    wrong = broken_checkpoints(run)
    ends = [step_folders(expected)[-1].name, best_name(expected)]
    for what, name in zip(("last", "best"), ends, strict=True):
        wrong += [f"{what} checkpoint: {line}" for line in checkpoint_differences(expected, run, name)]
    if best_name(run) != ends[1]:
        wrong.append(f"best leads to {best_name(run)}, not {ends[1]}")
    if step_folders(run) and step_folders(run)[-1].name != ends[0]:
        wrong.append(f"the last checkpoint is {step_folders(run)[-1].name}, not {ends[0]}")
    for name in ("metrics.jsonl", "samples.jsonl"):
        wrong += line_differences(expected / name, run / name)
    left = {path.name for path in run.rglob("*") if "partial" in path.name}
    left |= {path.name for path in run.iterdir()} - {path.name for path in expected.iterdir()}
    return wrong + [f"left behind: {name}" for name in sorted(left)]


def best_name(run: Path) -> str:
    """The checkpoint that `best` leads to; "nothing" without a link."""
    link = run / CHECKPOINTS / "best"
    return Path(os.readlink(link)).name if link.is_symlink() else "nothing"


def checkpoint_differences(expected: Path, run: Path, name: str) -> list[str]:
    """How a checkpoint differs between two runs, the names of these runs in its files aside."""
    mine, theirs = (folder / CHECKPOINTS / name for folder in (run, expected))
    if not mine.is_dir():
        return [f"{name} is not there"]
    wrong = [f"{file} is in only one of them" for file in sorted(files_of(mine) ^ files_of(theirs))]
    for file in sorted((files_of(mine) & files_of(theirs)) - CHANGING):
        if unnamed(mine / file, run) != unnamed(theirs / file, expected):
            wrong.append(f"{file} differs")
    states = [json.loads((folder / STATE).read_text(encoding="utf-8")) for folder in (mine, theirs)]
    return wrong + [f"state.json: {line}" for line in state_differences(*states)]


def unnamed(file: Path, run: Path) -> bytes:
    """What a file holds, but for the name of the run in texts."""
    content = file.read_bytes()
    return content if file.suffix == ".safetensors" else content.replace(run.name.encode(), b"RUN")


def state_differences(mine: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    wrong = []
    for name in sorted((mine.keys() | theirs.keys()) - FREE):
        ours, other = mine.get(name), theirs.get(name)
        if isinstance(ours, dict) and isinstance(other, dict):
            wrong += state_differences(ours, other, f"{prefix}{name}.")
        elif ours != other and f"{prefix}{name}" not in PLACES:
            wrong.append(f"{prefix}{name} is {ours!r}, not {other!r}")
    return wrong


def line_differences(expected: Path, file: Path) -> list[str]:
    """How the lines of one file of JSON lines differ from another's, times aside; no more than the first."""
    theirs, mine = read_lines(expected), read_lines(file)
    if len(mine) != len(theirs):
        return [f"{file.name} has {len(mine)} lines, not {len(theirs)}"]
    pairs = zip(mine, theirs, strict=True)
    wrong = [f"{file.name}: {ours} instead of {other}" for ours, other in pairs if ours != other]
    return wrong[:1]


def read_lines(file: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]

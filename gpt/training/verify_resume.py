"""Proves on this machine that a run continues exactly: `python -m gpt.training.verify_resume <options of train.py>`.

It trains `steps` updates without a break, and again in other processes that stop at each of `stops` and are continued,
both in a temporary folder, and compares all that the two leave behind: weights, optimizer, scaler, random generators,
data position, best checkpoint and the metrics of every step. With `split`, what continues computes the same global
batch in other micro-batches, with `ranks` in another number of processes. Then sums are taken in another order: losses
agree within `LOSSES`, tensors of weights and of the optimizer within `TENSORS` of their norm (Adam and Muon turn the
rounding of small gradients into larger steps, Muon that of bf16), and how near they really came is printed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from gpt.config import RunConfig, TrainConfig
from gpt.options import UserError
from gpt.training.checkpoints import RANDOM, STATE, TRAINER, CheckpointFolder, optimizer_files
from gpt.training.metrics import read_lines

STEPS = 20
LOSSES, TENSORS = 1e-3, 0.1  # most that another split may change, relatively
CLOCKED = ("elapsed_seconds", "wandb_id", "config", "metrics_bytes", "samples_bytes")  # parts of a state
COMPARED = ("step", "tokens", "train/loss", "train/lr", "val/loss", "val/bits_per_byte")
WHAT = "weights, optimizer, scaler, random generators, data position, best checkpoint, metrics"


@dataclass(frozen=True)
class Plan:
    """What is compared: `steps` updates straight, against the same with a new process after each of `stops`."""

    steps: int
    stops: tuple[int, ...]
    split: tuple[int, int] | None = None  # sequences in a micro-batch and micro-batches, after the first stop
    ranks: tuple[int, int] = (1, 1)  # processes that train together, until the first stop and after it

    @property
    def is_exact(self) -> bool:
        """Whether all sums are taken in the same order."""
        return self.split is None and self.ranks[0] == self.ranks[1]


def main(argv: list[str]) -> int:
    """The command. Returns the exit status: 0 equal, 1 not, 2 a mistake in the options."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from train import COMMAND  # whose options these are, and whose door
    from train import main as door

    parser = argparse.ArgumentParser(
        prog="python -m gpt.training.verify_resume", allow_abbrev=False,
        description="Prove that a run stopped and continued ends as one that never stopped.",
        epilog="All else is an option of train.py: train.batch_size=4 data=text …",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=STEPS, help=f"updates in all (default {STEPS})")
    parser.add_argument("--stops", default="", help="after which to stop, as 7,13 (default: in the middle)")
    parser.add_argument("--split", default="", help="micro-batch × micro-batches of what continues, as 2x4")
    parser.add_argument("--ranks", default="1", help="processes that train together, and that continue, as 4,2")
    given, options = parser.parse_known_args(argv)

    def run(config: RunConfig) -> int:
        plan = read_plan(given.steps, given.stops, given.split, config)
        return verify(config, replace(plan, ranks=read_ranks(given.ranks, plan, config)))

    return door(COMMAND, run, options)


def read_plan(steps: int, stops: str, split: str, config: RunConfig) -> Plan:
    """The plan that the command line means. Raises UserError."""
    try:
        at = tuple(sorted({int(stop) for stop in stops.split(",")})) if stops else (steps // 2,)
    except ValueError:
        raise UserError(f"--stops {stops}: is no list of steps; write --stops 7,13") from None
    if not 0 < at[0] <= at[-1] < steps:
        raise UserError(f"--stops {stops or at[0]}: must lie between 0 and --steps {steps}")
    if steps > config.train.max_steps:
        raise UserError(f"--steps {steps}: is more than train.max_steps={config.train.max_steps}; lower it")
    if not split:
        return Plan(steps, at)
    rows, _, count = split.partition("x")
    if not (rows.isdecimal() and count.isdecimal() and int(rows) and int(count)):
        raise UserError(f"--split {split}: write the sequences in a micro-batch and the micro-batches, as 2x4")
    whole = config.train.global_batch
    if int(rows) * int(count) != whole:
        raise UserError(f"--split {split}: must make the {whole} sequences of an update")
    return Plan(steps, at, (int(rows), int(count)))


def read_ranks(ranks: str, plan: Plan, config: RunConfig) -> tuple[int, int]:
    """How many processes begin and continue. Raises UserError."""
    first, _, second = ranks.partition(",")
    counts = [int(count) if count.isdecimal() else 0 for count in (first, second or first)]
    if not all(counts):
        raise UserError(f"--ranks {ranks}: write how many processes begin and how many continue, as 4,2")
    if counts != [1, 1] and plan.split:
        raise UserError(f"--ranks {ranks}: divides an update already; leave out --split")
    for count in counts:
        if config.train.global_batch % count:
            raise UserError(f"--ranks {ranks}: {count} cannot share {config.train.global_batch} sequences equally")
    return counts[0], counts[1]


@dataclass
class Margin:
    """The relative differences that are allowed, 0 for none at all, and the largest that were found below that."""

    losses: float = 0.0
    tensors: float = 0.0
    found_losses: float = 0.0
    found_tensors: float = 0.0

    def loss_is_near(self, a: Any, b: Any) -> bool:
        if not (self.losses and isinstance(a, float) and isinstance(b, float)):
            return False
        gap = abs(a - b) / max(abs(a), 1e-12)
        self.found_losses = max(self.found_losses, gap)
        return gap <= self.losses

    def tensor_is_near(self, a: Tensor, b: Tensor) -> bool:
        if not self.tensors or a.shape != b.shape:
            return False
        gap = ((a - b).float().norm() / a.float().norm().clamp(min=1e-12)).item()
        self.found_tensors = max(self.found_tensors, gap)
        return gap <= self.tensors


def verify(config: RunConfig, plan: Plan) -> int:
    """Run both, compare, and print what was found. Returns the exit status."""
    margin = Margin() if plan.is_exact else Margin(LOSSES, TENSORS)
    with tempfile.TemporaryDirectory() as folder:
        straight, broken = Path(folder, "straight"), Path(folder, "broken")
        trained(config, straight, [plan.steps], plan)
        trained(config, broken, [*plan.stops, plan.steps], plan)
        difference = next(differences(straight, broken, margin), "")
    stops = ", ".join(map(str, plan.stops))
    said = f"{plan.steps} steps, stopped and continued in another process after {stops}"
    if plan.split:
        said += f", then in {plan.split[1]} micro-batches of {plan.split[0]}"
    if plan.ranks != (1, 1):
        said += f", {plan.ranks[0]} processes and then {plan.ranks[1]}"
    if difference:
        print(f"NOT the same: {said}: {difference}")
        return 1
    near = f"losses within {margin.found_losses:.1g}, tensors within {margin.found_tensors:.1g} of their norm"
    print(f"{said}: {'the same, bit for bit' if plan.is_exact else f'the same data, {near}'} ({WHAT})")
    return 0


def trained(config: RunConfig, run_dir: Path, stops: list[int], plan: Plan) -> None:
    """Train up to each stop in processes of their own, after the first as the plan has it then. Raises UserError."""
    for number, stop in enumerate(stops):
        world, split = plan.ranks[min(number, 1)], plan.split if number else None
        train = replace(config.train, log_every=1)
        if split:
            train = replace(train, batch_size=split[0], grad_accum_steps=split[1])
        elif plan.ranks != (1, 1):
            train = shared(train, world)
        wandb = replace(config.wandb, mode="disabled")
        part = replace(config, run_dir=str(run_dir), resume="auto", train=train, wandb=wandb)
        start, port = multiprocessing.get_context("spawn").Process, free_port()
        processes = [start(target=train_part, args=(part, stop, rank, world, port)) for rank in range(world)]
        try:
            for process in processes:
                process.start()
        finally:  # also after a Ctrl-C, at which they save before they end
            for process in processes:
                if process.pid:
                    process.join()
        if status := next((process.exitcode for process in processes if process.exitcode), 0):
            raise UserError(f"the run itself ended with status {status} before step {stop}; see above")
        if CheckpointFolder(run_dir).steps()[-1:] != [stop]:  # by train.max_epochs, or early
            raise UserError(f"--steps {stops[-1]}: the run itself ends before step {stop}; give fewer --steps")


def shared(train: TrainConfig, world: int) -> TrainConfig:
    """The same global batch for so many processes, in micro-batches as large as they were where that goes."""
    own = train.global_batch // world
    size = math.gcd(own, train.micro_batch)
    return replace(train, batch_size=size, grad_accum_steps=own // size, global_batch_size=None)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def train_part(config: RunConfig, stop: int, rank: int, world: int, port: int) -> None:
    """In a process of its own, one of `world`: continue a run up to a step."""
    if world > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
        torch.set_num_threads(max(1, torch.get_num_threads() // world))
    from gpt.training.run import train

    try:
        sys.exit(train(config, stop_at=stop))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def differences(one: Path, other: Path, margin: Margin) -> Iterator[str]:
    """Each thing in which two runs differ by more than the margin, in words. With a margin, random generators may."""
    yield from in_metrics(one, other, margin)
    a, b = (CheckpointFolder(run) for run in (one, other))
    ends = [(run.steps()[-1:], (run.path / "best").readlink().name) for run in (a, b)]
    if ends[0] != ends[1]:
        yield f"the last and the best checkpoints are {ends[0]} and {ends[1]}"
        return
    last = a.steps()[-1]
    for left, right in ((a.at(last), b.at(last)), (a.path / "best", b.path / "best")):
        yield from in_states(left, right, margin)
        weights, optimizer = sorted(left.glob("*.safetensors")), optimizer_files(left)
        files = [path.relative_to(left).as_posix() for path in (*weights, *optimizer)]
        for name in [*files, *([] if margin.tensors else [f"{TRAINER}/{RANDOM}"])]:
            yield from in_tensors(load_file(left / name), load_file(right / name), f"{left.name}/{name}", margin)


def in_metrics(one: Path, other: Path, margin: Margin) -> Iterator[str]:
    lines = [read_lines(run / "metrics.jsonl") for run in (one, other)]
    if [line["step"] for line in lines[0]] != [line["step"] for line in lines[1]]:
        yield "metrics.jsonl: the steps differ"
    for a, b in zip(*lines, strict=False):
        for name in COMPARED:
            x, y = a.get(name), b.get(name)
            if x != y and not margin.loss_is_near(x, y):
                yield f"step {a['step']}: {name} is {x} and {y}"


def in_states(one: Path, other: Path, margin: Margin) -> Iterator[str]:
    a, b = (json.loads((folder / TRAINER / STATE).read_text(encoding="utf-8")) for folder in (one, other))
    for name in sorted((a.keys() | b.keys()) - set(CLOCKED)):
        if a.get(name) != b.get(name) and not margin.loss_is_near(a.get(name), b.get(name)):
            yield f"{one.name}: {name} is {a.get(name)} and {b.get(name)}"


def in_tensors(one: dict[str, Tensor], other: dict[str, Tensor], where: str, margin: Margin) -> Iterator[str]:
    if one.keys() != other.keys():
        yield f"{where}: the tensors {sorted(one.keys() ^ other.keys())} are only in one"
    for name in sorted(one.keys() & other.keys()):
        a, b = one[name], other[name]
        if torch.equal(a, b) or margin.tensor_is_near(a, b):
            continue
        count, most = int((a != b).sum()), (a.double() - b.double()).abs().max().item()
        yield f"{where}: {name} differs in {count:,} of {a.numel():,} numbers, by at most {most:g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

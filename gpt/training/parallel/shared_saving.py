"""Checkpoints that all processes write together, where no one's memory would hold the whole of the model's weights and
the optimizer's state.

Each copies the rows that it has to the CPU. Then, tensor by tensor, one process gathers a whole one from the rows of
all and, once it has those of a file, writes that; all have a file at a time, so they write in parallel. What comes out
is a checkpoint like any other: weights in several files with an index, as transformers writes them, the optimizer's
tensors likewise. It goes over a group of connections of its own, as training goes on over the others meanwhile.

Not `torch.distributed.checkpoint`: what it writes in parts keeps its description in a pickle, and its writer of Hugging
Face's format leaves tensors divided, or puts them together in one process afterwards.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from gpt.model.checksums import write_sums
from gpt.model.dialects import Entry
from gpt.model.huggingface import WEIGHTS_METADATA, files_of, planned_files, stored_form, write_description
from gpt.model.tensor_files import write_safetensors
from gpt.options import UserError
from gpt.text.checksums import digest
from gpt.text.durable import flush_file
from gpt.text.files import appears
from gpt.training.checkpoints import TRAINER, TrainerState, publishing, write_state
from gpt.training.parallel.layouts import RowLayout, padded_rows
from gpt.training.parallel.ranks import TIMEOUT, Group, status_of
from gpt.training.random_states import random_states

if TYPE_CHECKING:
    from gpt.training.trainer import Trainer

FILE_BYTES = 2**28  # of a file, at most, but for a larger tensor: what a process holds besides its rows


@dataclass(frozen=True)
class Rows:
    """What this process has, on the CPU or not, of a tensor of this shape; of a scalar, all."""

    own: Tensor
    shape: torch.Size


@dataclass(frozen=True)
class Parts:
    """What this process has of a checkpoint, as it was after one step."""

    state: TrainerState
    weights: dict[str, Rows]  # by our names
    optimizer: dict[str, Rows]
    random: dict[str, Tensor]


@dataclass(frozen=True)
class Item:
    """A tensor of a file, from the whole one of which there are rows."""

    name: str
    rows: Rows
    form: Callable[[Tensor], Tensor] = lambda whole: whole


class SharedSaving:
    """Saves the checkpoints of a trainer whose model is in shards. All processes must call it alike."""

    together = True

    def __init__(self, trainer: Trainer, layout: RowLayout, ranks: Group) -> None:
        self.trainer, self.layout, self.ranks = trainer, layout, ranks
        self.description = f"sharded: {ranks.world} processes write each checkpoint together"
        self.group = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def job(self) -> Callable[[], None]:
        """What writes a checkpoint of now; with `train.async_save`, from copies that training does not change."""
        trainer = self.trainer
        kept = copied if trainer.config.train.async_save else Rows
        optimizers = trainer.optimizers
        shapes = {name: self.layout.shape(own) for own, name in optimizers.names.items()}
        parts = Parts(
            copy.deepcopy(trainer.state),
            {name: kept(own, self.layout.shape(own)) for name, own in self.layout.named()},
            {
                path: kept(tensor, shapes[path.rpartition("/")[0]] if tensor.dim() else tensor.shape)
                for path, tensor in sorted(optimizers.state_tensors().items())
            },
            random_states(trainer.hardware.device),
        )
        return lambda: self.publish(parts)

    @torch.no_grad()
    def publish(self, parts: Parts) -> None:
        """Write a checkpoint and let older ones go. Raises in all processes: in the first one where something went
        wrong, that, in the others `Elsewhere`."""
        checkpoints, step = self.trainer.checkpoints, parts.state.step
        folder = checkpoints.partial(step)
        with ExitStack() as published:
            with self.agreeing():
                if self.ranks.main:
                    published.enter_context(publishing(checkpoints.at(step), folder))
                    (folder / TRAINER).mkdir()
            with self.agreeing():
                if not appears(folder):
                    raise UserError(f"train.save=sharded: {folder} is on rank 0's host only; share run_dir among all")
            sums = self.write(parts, folder)
            with self.agreeing():
                if self.ranks.main:
                    self.describe(parts, folder, sums)
                    published.close()
                    checkpoints.settle(parts.state, self.trainer.config.train.keep_checkpoints)

    def write(self, parts: Parts, folder: Path) -> dict[str, str]:
        """Write all that is large, and find its checksums, in rank 0 those of all."""
        files = list({**self.weight_files(parts), **self.optimizer_files(parts)}.items())
        world, sums = self.ranks.world, {}
        for begin in range(0, len(files), world):
            held: dict[str, Tensor] = {}
            turn = files[begin : begin + world]
            for owner, (_, items) in enumerate(turn):
                for item in items:
                    whole = self.gathered(item.rows, owner)
                    if whole is not None:
                        held[item.name] = item.form(whole)
            with self.agreeing():
                if self.ranks.rank < len(turn):
                    name, _ = turn[self.ranks.rank]
                    write_safetensors(held, folder / name, metadata=WEIGHTS_METADATA)
                    flush_file(folder / name)
                    sums[name] = digest(folder / name)
        everyones: list[Any] = [None] * world
        dist.all_gather_object(everyones, sums, group=self.group)
        return {name: value for own in everyones for name, value in own.items()}

    def planned_weights(self) -> dict[str, list[Entry]]:
        model = self.trainer.model
        most = self.most(4 * model.parameter_count())
        return planned_files(model.config, model.vocab_size, torch.float32, most)

    def weight_files(self, parts: Parts) -> dict[str, list[Item]]:
        model, weights = self.trainer.model, parts.weights
        if model.config.position_kind == "sinusoidal":  # a table that every process has
            weights = weights | {"positions.weight": Rows(model.sinusoids, torch.Size())}
        return {
            file: [Item(e.theirs, weights[e.ours], partial(stored_form, e, dtype=torch.float32)) for e in entries]
            for file, entries in self.planned_weights().items()
        }

    def optimizer_files(self, parts: Parts) -> dict[str, list[Item]]:
        sizes = {name: rows.own.element_size() * math.prod(rows.shape) for name, rows in parts.optimizer.items()}
        files = files_of(sizes, self.most(sum(sizes.values())), "optimizer")
        return {
            f"{TRAINER}/{file}": [Item(name, parts.optimizer[name]) for name in names] for file, names in files.items()
        }

    def most(self, n_bytes: int) -> int:
        """Bytes of a file, so that there is one for each process."""
        return min(FILE_BYTES, -(-n_bytes // self.ranks.world))

    def gathered(self, rows: Rows, owner: int) -> Tensor | None:
        """The whole tensor in its owner, None elsewhere."""
        mine = self.ranks.rank == owner
        own = rows.own.detach().cpu()
        if not rows.shape:
            return own.clone() if mine else None
        padded = padded_rows(own, rows.shape[0], self.ranks.world)
        whole = own.new_empty(self.ranks.world * len(padded), *rows.shape[1:]) if mine else None
        places = None if whole is None else [place.view(torch.uint8) for place in whole.split(len(padded))]
        dist.gather(padded.view(torch.uint8), places, group=self.group, group_dst=owner)
        return None if whole is None else whole[: rows.shape[0]].contiguous()  # only the last rows are padding

    def describe(self, parts: Parts, folder: Path, sums: Mapping[str, str]) -> None:
        """Write what is small: in rank 0."""
        tokenizer = self.trainer.corpus.tokenizer
        files = self.planned_weights()
        write_description(
            folder, self.trainer.model, files, tokenizer.end_of_text, begin_of_text=tokenizer.begin_of_text
        )
        tokenizer.save(folder)
        write_state(folder, parts.state, parts.random)
        write_sums(folder, sums)

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """As `Group.agreeing`, for the thread that writes."""
        error: Exception | None = None
        try:
            yield
        except Exception as failure:
            error = failure
        statuses: list[Any] = [None] * self.ranks.world
        dist.all_gather_object(statuses, status_of(error), group=self.group)
        teller = next((rank for rank, status in enumerate(statuses) if status), 0)
        self.ranks.conclude(error, teller, statuses[teller])


def copied(own: Tensor, shape: torch.Size) -> Rows:
    return Rows(own.detach().to("cpu", copy=True), shape)

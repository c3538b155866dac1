"""The training loop. One loop for every corpus and model; what differs is data and options.

Legend: B sequences in a micro-batch, T context length.
A step's gradient is the loss summed over all tokens of all its micro-batches, divided by their number. All state is
in `TrainerState`, the model, the optimizers, the gradient scaler and the random generators; the data order and
the learning rate are pure functions of it, so a restored run continues bit for bit.
"""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from gpt.config import RunConfig
from gpt.inference.decode import Sample
from gpt.inference.sampling import NotFinite
from gpt.model.adapters import load_adapters
from gpt.model.hardware import Hardware, muon_dtype
from gpt.model.process import resident_memory
from gpt.options import to_dict
from gpt.text.batches import training_data
from gpt.text.shards import Corpus
from gpt.training.base import hub_model, keep_base
from gpt.training.checkpoints import CheckpointFolder, TrainerState, read_state
from gpt.training.command import continuing_command
from gpt.training.evaluation import Evaluation, evaluate
from gpt.training.feed import Feed
from gpt.training.finite import Diverged, FiniteWatch, StepStart
from gpt.training.identity import identity, refuse_differences
from gpt.training.initial import build_model
from gpt.training.interrupts import Interrupts
from gpt.training.optimizers import Optimizers, clip_divisor
from gpt.training.parallel.choice import make_saving, make_strategy
from gpt.training.parallel.ranks import Ranks
from gpt.training.random_states import random_states
from gpt.training.report import Reporter, Silent
from gpt.training.restoring import restore
from gpt.training.samples import write_samples
from gpt.training.saving import Writer, first_not_finite
from gpt.training.schedules import lr_scale

COMPARED_SAMPLES = 3  # of the base and of the tuned model, shown at the end of fine-tuning


class Trainer:
    """A model in training, in a run folder.

    Raises UserError where that holds a run of another model, tokenizer, corpus or seed, listing the differences.
    """

    def __init__(
        self, config: RunConfig, corpus: Corpus, hardware: Hardware, run_dir: Path, ranks: Ranks | None = None
    ) -> None:
        """`ranks`: the processes that train together; by default this one alone."""
        self.ranks = ranks or Ranks()
        self.process_memory = resident_memory() or 0  # bytes, before there is a model
        torch.manual_seed(config.seed)
        if config.train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only so
            torch.use_deterministic_algorithms(True)
        self.config, self.corpus, self.hardware, self.run_dir = config, corpus, hardware, run_dir
        self.checkpoints = CheckpointFolder(run_dir)
        self.state = TrainerState(identity=identity(config, corpus), config=to_dict(config))
        with self.ranks.agreeing():
            if latest := self.checkpoints.latest():
                saved = read_state(latest)
                command = lambda: continuing_command(saved.config, run_dir)  # noqa: E731
                refuse_differences(saved.identity, self.state.identity, run_dir, command)
            self.base_name = self.ranks.from_main(lambda: keep_base(config)) if config.lora.rank else ""
            self.model = build_model(config, corpus.tokenizer)
        self.model.recompute = config.train.activation_checkpointing
        self.parallel = make_strategy(config, self.model, hardware, self.ranks)
        self.optimizers = Optimizers(self.model, config.optimizer, muon_dtype(hardware), self.parallel.layout)
        self.scaler = self.parallel.scaler(hardware.device, enabled=hardware.precision == "fp16")
        self.data = training_data(corpus.train, config.model.context_length, config.seed, config.train.global_batch)
        self.feed = self.make_feed()
        self.changes: list[str] = []  # options that a continued run has changed
        self.damage: list[str] = []  # what was found of checkpoints that are not as they were written
        self.saving = make_saving(self)
        self.writer = Writer(config.train.async_save)
        self.watch = FiniteWatch(hardware.device)

    def make_feed(self) -> Feed:
        train, ranks = self.config.train, self.ranks
        device = self.hardware.device
        return Feed(self.data, train.micro_batch, train.grad_accum_steps, device, ranks.rank, ranks.world)

    def fit(self, reporter: Reporter | Silent, interrupts: Interrupts) -> None:
        """Train to the end, or until interrupted; either way the last step done is in a checkpoint.

        Raises `Diverged` as soon as a number that is not finite is seen, and what went wrong with writing a checkpoint.
        """
        train = self.config.train
        shape = train.micro_batch, self.config.model.context_length
        with self.hardware.autocast():
            self.parallel.begin(torch.zeros(shape, dtype=torch.long, device=self.hardware.device))
        if self.config.init_from and not self.state.base:
            self.evaluate_base(reporter)
        while not self.done:
            self.writer.check()
            loss, norm, scale = self.update()
            if self.due(train.log_every):
                self.watch.check()
                reporter.log_training(self.state.step, loss.item(), norm.item(), scale)
            evaluating, improved = self.due(train.eval_every), False
            if evaluating:
                evaluation, improved = self.evaluate()
                samples = self.sampled(reporter, 1, self.state.step)
                reporter.log_evaluation(self.state.step, evaluation, samples)
            stopping = interrupts.stop(self.state.step)  # asked once: a signal may come between any two lines
            saving = improved or self.done or stopping or self.due(self.checkpoint_every)
            if saving:
                reporter.settle()
                self.save()
            reporter.end_step(self.state.step, restart_clock=evaluating or saving)
            if stopping:
                break
        with self.ranks.agreeing():  # who goes on from here may read that checkpoint
            self.writer.wait()

    @property
    def checkpoint_every(self) -> int:
        return self.config.train.checkpoint_every or self.config.train.eval_every

    @property
    def done(self) -> bool:
        return self.state.step >= self.config.train.max_steps or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        patience = self.config.train.early_stop_patience
        return patience is not None and self.state.bad_evaluations >= patience

    def due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step >= self.config.train.max_steps

    def update(self) -> tuple[Tensor, Tensor, float]:
        """One optimizer update. Returns the mean loss (nats a token), the norm of the gradient before clipping, both
        on the device, and the learning rate over its peak."""
        train, device = self.config.train, self.hardware.device
        self.ranks.seed(self.config.seed, self.state.step)
        start = StepStart(self.state.step, self.next_sequence(), random_states(device))
        self.watch.begin(start)
        batches = self.feed.step(start.first_sequence)
        loss = torch.zeros((), device=device)
        for number, (inputs, targets) in enumerate(batches.micro_batches, 1):
            with self.parallel.micro_batch(last=number == len(batches.micro_batches)):
                with self.hardware.autocast():
                    part = self.parallel.loss(inputs, targets) / batches.n_tokens
                self.scaler.scale(part).backward()
            loss += part.detach()
        loss = self.ranks.sum(loss)
        for optimizer, _ in self.optimizers.peaks:
            self.scaler.unscale_(optimizer)
        norm = self.optimizers.gradient_norm()
        scale = lr_scale(self.config.schedule, self.state.step, train.max_steps)
        # Scaled fp16 gradients overflow now and then; at a scale below 1 they would have without it.
        overflow = self.scaler.is_enabled() and not norm.isfinite() and self.scaler.get_scale() >= 1
        self.watch.note(loss, *([] if overflow else [norm]))
        if not overflow:  # else no optimizer may see them; the scaler lowers its scale
            self.optimizers.step(scale, clip_divisor(norm, train.grad_clip), self.watch.keep_still)
        self.scaler.update()
        self.optimizers.zero_grad()
        self.state.step += 1
        self.state.sequences = start.first_sequence + self.global_batch
        return loss, norm, scale

    @property
    def global_batch(self) -> int:
        """Sequences in an update."""
        return self.config.train.global_batch

    def next_sequence(self) -> int:
        """Where the next step begins: at the cursor, or behind what is skipped there.

        Of a run that has changed its global batch since a rollback, some before the skipped ones may be left out too.
        """
        first = self.state.sequences
        for begin, count in sorted(self.state.skipped):
            if begin < first + self.global_batch and first < begin + count:
                first = begin + count
        return first

    def evaluate(self) -> tuple[Evaluation, bool]:
        """Evaluate on the validation split; the result, and whether it is the best so far."""
        self.watch.check()
        train, state = self.config.train, self.state
        size = train.eval_batch_size or train.micro_batch
        result = evaluate(
            self.model, self.corpus.val, self.corpus.tokenizer, self.hardware, size, train.eval_tokens, None, self.ranks
        )
        self.parallel.rest()
        if not math.isfinite(result.loss):
            raise Diverged(f"step {state.step}: the validation loss is {result.loss}")
        if state.best_loss is not None and result.loss >= state.best_loss:
            state.bad_evaluations += 1
            return result, False
        state.best_loss, state.best_step, state.bad_evaluations = result.loss, state.step, 0
        state.best_bits_per_byte = result.bits_per_byte
        return result, True

    def evaluate_base(self, reporter: Reporter | Silent) -> None:
        """Score the initial model, let it write, and keep it as the checkpoint that fine-tuning has to beat."""
        evaluation, _ = self.evaluate()
        samples = self.sampled(reporter, COMPARED_SAMPLES)
        hub = hub_model(self.config.init_from)
        self.state.base = {
            "hub": hub.repository if hub else None,
            "loss": evaluation.loss,
            "bits_per_byte": evaluation.bits_per_byte,
            "samples": [sample.prompt + sample.text for sample in samples],
        }
        reporter.log_evaluation(0, evaluation, samples)
        reporter.settle()
        self.save()
        reporter.end_step(0, restart_clock=True)

    def samples(self, count: int, first: int = 0) -> list[Sample]:
        """What the model writes now: samples number `first` … of the seed. Of several processes one lets it write,
        unless each has but a part of it."""
        if not (self.ranks.main or self.model.sharded):
            return []
        try:
            with self.parallel.writing():
                return write_samples(self.model, self.corpus, self.config, count, first)
        finally:
            self.parallel.rest()

    def sampled(self, reporter: Reporter | Silent, count: int, first: int = 0) -> list[Sample]:
        """As `samples`, and where the model cannot write, a word about it: training may go on all the same."""
        try:
            return self.samples(count, first)
        except NotFinite as error:
            reporter.line.say(f"step {self.state.step:>6}  no sample: {error}")
            return []

    def samples_of_best(self) -> list[Sample]:
        """What the best checkpoint writes with the seeds of the base's samples. Leaves its weights in the model."""
        assert self.state.best_step is not None
        self.load(self.checkpoints.at(self.state.best_step))
        return self.samples(COMPARED_SAMPLES)

    def save(self) -> None:
        """Have a checkpoint of this step published. Raises `Diverged` rather than save what is not finite, and what
        went wrong with the one before."""
        self.watch.check()
        if name := next(filter(None, self.ranks.gather(first_not_finite(self.model, self.parallel.layout))), None):
            raise Diverged(f"step {self.state.step}: a weight is not finite, in {name}")
        with self.ranks.agreeing():  # who has nothing to write waits as long as it takes
            self.writer.wait()  # before there is a second copy
        self.state.scaler = self.scaler.state_dict()
        job = self.saving.job()
        waited_for = not (self.saving.together or self.writer.behind)  # by those who do not write
        with self.ranks.agreeing() if waited_for else nullcontext():
            if job:
                self.writer.run(job)

    def load(self, folder: Path) -> None:
        """Take over the weights of a checkpoint of this run: all, or those of the adapters. Raises UserError."""
        if self.config.lora.rank:
            self.parallel.load(lambda model: load_adapters(model, folder))
        else:
            self.parallel.load_weights(folder)

    def restore(self) -> bool:
        """Continue from the newest checkpoint of the run folder; whether there was one. Raises UserError."""
        return restore(self)

"""The runs that the fault harness disturbs: small, and between them every way of training with a state of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.faults.processes import Job, tiny, write_book, write_pairs

# Seconds of training with many checkpoints, evaluations that take a while, and dropout, which draws random numbers.
USUAL: dict[str, object] = {
    "train.max_steps": 240, "train.eval_every": 40, "train.checkpoint_every": 15, "train.eval_tokens": 4000,
    "model.dropout": 0.1,
}  # fmt: skip
PAIRS: dict[str, object] = {
    "data": "pairs", "data.files": "[pairs.jsonl]", "data.prompt": r"{question}\n", "data.completion": "{answer}",
    "data.documents": "whole",
}  # fmt: skip
# Options that come from the model where a run starts from one.
GIVEN_BY_MODEL = ("tokenizer", "model.n_layer", "model.n_head", "model.n_embd")


def job(cwd: Path, **changes: object) -> Job:
    return tiny(cwd, "undisturbed", **{name.replace(".", "__"): value for name, value in USUAL.items()} | changes)


def adamw(cwd: Path) -> Job:
    """AdamW with dropout, accumulation and a trained BPE."""
    return job(cwd, train__grad_accum_steps=2, train__max_steps=180, tokenizer="bpe", tokenizer__vocab_size=300)


def muon(cwd: Path) -> Job:
    """Muon in bf16."""
    return job(cwd, optimizer="muon", train__precision="bf16", model__n_embd=64, train__max_steps=150)


def pairs(cwd: Path) -> Job:
    """Prompts and completions."""
    write_pairs(cwd / "pairs.jsonl")
    return job(cwd, **{name.replace(".", "__"): value for name, value in PAIRS.items()})


def early_stop(cwd: Path) -> Job:
    """A checkpoint at each step, one kept, ended by a loss that no longer falls."""
    return job(
        cwd, train__checkpoint_every=1, train__keep_checkpoints=1, train__early_stop_patience=5, train__eval_every=10,
        train__max_steps=2000, optimizer__lr=0.01, schedule="constant", train__eval_tokens=1500,
    )  # fmt: skip


def lora(cwd: Path) -> Job:
    """Adapters on a model made beforehand, on pairs."""
    return tuned(cwd, pairs(cwd), lora__rank=4, train__max_epochs="null", train__early_stop_patience="null")


def finetune(cwd: Path) -> Job:
    """Every weight of a model made beforehand, schedule wsd."""
    return tuned(cwd, job(cwd), schedule="wsd", train__max_epochs=8, train__early_stop_patience="null")


def characters(cwd: Path) -> Job:
    """One token a character, learned positions, Muon, a linear schedule, an end after epochs."""
    return job(
        cwd, tokenizer="char", model="gpt2", optimizer="muon", model__n_layer=2, model__n_head=2, model__n_embd=32,
        model__context_length=32, schedule="linear", train__max_epochs=0.5, train__max_steps=5000,
    )  # fmt: skip


def tuned(cwd: Path, changes: Job, **more: object) -> Job:
    """A run that starts from a model that is trained now."""
    base = tiny(cwd, "base", train__max_steps=60, train__eval_every=60, train__checkpoint_every=60).run()
    assert base.status == 0, base.said
    options = {name: value for name, value in changes.options.items() if name not in GIVEN_BY_MODEL}
    return Job(cwd, options=options).changed(init_from="base", **more)


CONFIGURATIONS: dict[str, Callable[[Path], Job]] = {
    made.__name__: made for made in (early_stop, lora, adamw, muon, pairs, finetune, characters)
}  # small measurements take the first


def configured(name: str, cwd: Path) -> Job:
    """A configuration with its files in the new folder `cwd`. Its run folder is `undisturbed`."""
    cwd.mkdir(parents=True)
    write_book(cwd / "book.txt")
    return CONFIGURATIONS[name](cwd)

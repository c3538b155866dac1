"""Whole runs: the arithmetic of a step, exact resumption, and what a run leaves behind."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from gpt.model.transformer import Decoder
from gpt.options import UserError
from gpt.text.shards import prepare
from gpt.text.windows import train_batch
from gpt.training import saving
from gpt.training import trainer as trainer_module
from gpt.training.evaluation import Evaluation
from gpt.training.run import train
from gpt.training.trainer import Trainer

from .conftest import MakeConfig


def files_of(checkpoint: Path) -> dict[str, bytes]:
    """Everything in a checkpoint that must repeat bit for bit."""
    names = ("model.safetensors", "trainer/optimizer.safetensors", "trainer/random.safetensors", "config.json")
    return {name: (checkpoint / name).read_bytes() for name in names}


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    timed = ("elapsed_seconds", "train/tokens_per_second", "train/mfu")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make the next run die in the middle of an update, as a kill would."""
    update = Trainer.update

    def dying(self: Trainer) -> Any:
        if self.state.step == step:
            raise RuntimeError("killed")
        return update(self)

    monkeypatch.setattr(Trainer, "update", dying)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout-accumulation": {"model": {"dropout": 0.2}, "train": {"grad_accum_steps": 2, "checkpoint_every": 3}},
    "muon-l1": {"optimizer": {"name": "muon", "lr": 0.01, "l1": 0.01}, "schedule": {"name": "wsd"}},
    "bf16-gpt2": {"model": {"dialect": "gpt2"}, "train": {"precision": "bf16", "checkpoint_every": 5}},
    "bf16-qwen3": {"optimizer": {"name": "muon"}, "train": {"precision": "bf16"}},
    "early-stopping": {"train": {"early_stop_patience": 2, "eval_every": 1}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_continues_bit_for_bit(
    variant: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert train(make_config("straight", **VARIANTS[variant])) == 0
    config = make_config("killed", **VARIANTS[variant])
    for step in (2, 7, 10):
        with monkeypatch.context() as patch:
            crash_at(patch, step)
            with pytest.raises(RuntimeError, match="killed"):
                train(config)
    assert train(config) == 0
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for link in ("step-00000012", "best"):
        assert files_of(killed / "checkpoints" / link) == files_of(straight / "checkpoints" / link)
    assert metrics(killed) == metrics(straight)
    assert (killed / "samples.jsonl").read_text() == (straight / "samples.jsonl").read_text()


def test_a_step_is_that_of_an_obvious_loop(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(
        train={"max_steps": 3, "batch_size": 2, "grad_accum_steps": 3, "grad_clip": 0.5},
        schedule={"name": "constant", "warmup_steps": 0},
    )
    corpus = prepare(config.data, config.tokenizer)
    torch.manual_seed(config.seed)
    model = Decoder(config.model, 257)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == d], "weight_decay": 0.1 * (d - 1)} for d in (1, 2)
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    for step in range(3):
        inputs, targets = map(torch.from_numpy, train_batch(corpus.train, 16, config.seed, 6 * step, 6))
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        adamw.step()
    assert train(config) == 0
    logged = [line["train/loss"] for line in metrics(tmp_path / "run") if "train/loss" in line]
    assert logged[-1] == pytest.approx(loss.item(), rel=1e-5)
    saved = load_file(tmp_path / "run/checkpoints/step-00000003/model.safetensors")
    torch.testing.assert_close(saved["model.embed_tokens.weight"], model.embed.weight[:257].detach(), atol=1e-5, rtol=0)


def test_how_a_global_batch_is_split_changes_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    for name, size in (("a", 6), ("b", 3), ("c", 1)):
        train(make_config(name, train={"batch_size": size, "grad_accum_steps": 6 // size, "eval_batch_size": size}))
    runs = [metrics(tmp_path / name) for name in "abc"]
    for first, *others in zip(*runs, strict=True):
        for other in others:
            assert other == pytest.approx(first, rel=2e-4)


def test_the_run_folder_is_as_designed(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config(train={"keep_checkpoints": 1}))
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()} - {".lock"}
    assert names == {"config.yaml", "metrics.jsonl", "loss.png", "samples.jsonl", "checkpoints"}
    with Image.open(run / "loss.png") as picture:
        picture.verify()
    evaluations = [line for line in metrics(run) if "val/loss" in line]
    assert [line["step"] for line in evaluations] == [4, 8, 12]
    best = min(evaluations, key=lambda line: line["val/loss"])["step"]
    assert (run / "checkpoints/best").readlink() == Path(f"step-{best:08d}")
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert kept == {"best", f"step-{best:08d}", "step-00000012"}
    checkpoint = {path.relative_to(run / "checkpoints/best").as_posix() for path in run.glob("checkpoints/best/**/*")}
    assert {"config.json", "model.safetensors", "tokenizer.json", "trainer/state.json"} <= checkpoint
    state = json.loads((run / "checkpoints/best/trainer/state.json").read_text())
    assert state["config"]["optimizer"]["lr"] == 0.01
    assert state["sequences"] == 4 * best


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe", "gpt2"])
def test_transformers_loads_every_checkpoint(
    tokenizer: str, make_config: MakeConfig, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    transformers = pytest.importorskip("transformers")
    if tokenizer == "gpt2":
        request.getfixturevalue("gpt2_vocabulary")
    config = make_config(tokenizer={"name": tokenizer}, train={"max_steps": 2})
    train(config)
    folder = tmp_path / "run/checkpoints/best"
    text = "the leaf grows 葉 and\n falls" if tokenizer != "char" else "leaf 葉 tree.\n"
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    corpus = prepare(config.data, config.tokenizer)
    assert ids == corpus.tokenizer.encode(text)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    mine = Trainer(config, corpus, trainer_module.Hardware(torch.device("cpu"), "fp32"), tmp_path / "run")
    assert mine.restore()
    with torch.no_grad():
        x = torch.tensor([ids[:16]])
        torch.testing.assert_close(mine.model.eval()(x), theirs(x).logits, atol=1e-4, rtol=0)


def test_a_finished_run_says_so_and_can_be_extended(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make_config())
    before = files_of(tmp_path / "run/checkpoints/step-00000012")
    capsys.readouterr()
    assert train(make_config()) == 0
    assert (
        "is complete: 12 steps done, train.max_steps=12; extend it with train.max_steps=24" in capsys.readouterr().err
    )
    assert files_of(tmp_path / "run/checkpoints/step-00000012") == before
    assert train(make_config(train={"max_steps": 16}, optimizer={"lr": 0.02})) == 0
    assert "with optimizer.lr: 0.01 there, 0.02 now; train.max_steps: 12 there, 16 now" in capsys.readouterr().err
    assert [line["step"] for line in metrics(tmp_path / "run") if "val/loss" in line] == [4, 8, 12, 16]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"n_layer": 3}}, "model.n_layer: 2 there, 3 now"),
        ({"tokenizer": {"name": "char"}}, "tokenizer: byte"),
        ({"seed": 5}, "seed: 1337 there, 5 now"),
        ({"data": {"val_fraction": 0.5}}, "the text has changed since, or an option of data"),
        ({"optimizer": {"name": "muon"}}, "optimizer: adamw there, muon now"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    changes: dict[str, Any], message: str, make_config: MakeConfig
) -> None:
    train(make_config(train={"max_steps": 1}))
    with pytest.raises(UserError) as error:
        train(make_config(**changes))
    assert message in str(error.value)


def test_resume_never_refuses_a_folder_with_checkpoints(make_config: MakeConfig) -> None:
    assert train(make_config(train={"max_steps": 1}, resume="never")) == 0
    with pytest.raises(UserError, match="resume=never"):
        train(make_config(resume="never"))


def test_a_corpus_shorter_than_the_context_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shorter than one context.*model\.context_length=100000"):
        train(make_config(model={"context_length": 100_000}))
    assert not (tmp_path / "run").exists()


def test_early_stopping_counts_evaluations_without_a_better_loss(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = iter([3.0, 2.0, 2.5, 1.5, 1.6, 1.5, 1.4])
    monkeypatch.setattr(trainer_module, "evaluate", lambda *_: Evaluation(next(losses), 100, 100))
    config = make_config(train={"eval_every": 1, "early_stop_patience": 2})
    assert train(config) == 0
    assert "Stopped early: 2 evaluations without a better loss" in capsys.readouterr().err
    assert (tmp_path / "run/checkpoints/best").readlink() == Path("step-00000004")
    assert [line["step"] for line in metrics(tmp_path / "run") if "val/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert train(config) == 0
    assert next(losses) == 1.4  # the finished run was left alone


def test_a_half_written_checkpoint_is_never_taken(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    train(make_config(train={"max_steps": 4}))
    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_trainer", full_disk)
        with pytest.raises(OSError, match="No space"):
            train(make_config())
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == {"best", "step-00000004"}
    (tmp_path / "run/checkpoints/partial-00000099").mkdir()
    assert train(make_config()) == 0
    assert not list((tmp_path / "run/checkpoints").glob("partial-*"))


def test_overflowing_fp16_gradients_touch_no_weight_and_lower_the_scale(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(optimizer={"name": "muon", "l1": 1.0})
    corpus = prepare(config.data, config.tokenizer)
    trainer = Trainer(config, corpus, trainer_module.Hardware(torch.device("cpu"), "fp32"), tmp_path / "run")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer.update()
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    scale = trainer.scaler.get_scale()
    poisoned = trainer.model.embed.weight.register_hook(lambda gradient: gradient * math.inf)
    trainer.update()
    for parameter, value in zip(trainer.model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
    assert trainer.scaler.get_scale() < scale
    poisoned.remove()
    trainer.update()
    trainer.watch.check()
    assert not torch.equal(next(trainer.model.parameters()), before[0])


def test_weights_that_are_not_finite_are_never_saved(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    corpus = prepare(config.data, config.tokenizer)
    trainer = Trainer(config, corpus, trainer_module.Hardware(torch.device("cpu"), "fp32"), tmp_path / "run")
    with torch.no_grad():
        trainer.model.norm.weight[3] = math.inf
    with pytest.raises(trainer_module.Diverged, match="a weight is not finite"):
        trainer.save()
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_run_stopped_before_its_first_evaluation_can_be_declared_complete(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    update = Trainer.update

    def interrupting(self: Trainer) -> Any:
        result = update(self)
        if self.state.step == 2:
            signal.raise_signal(signal.SIGINT)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupting)
        assert train(make_config()) == 130
    assert train(make_config(train={"max_steps": 2})) == 0
    assert "2 steps done, train.max_steps=2; extend it with train.max_steps=4" in capsys.readouterr().err


@pytest.mark.slow
def test_compiled_training_learns_the_same(make_config: MakeConfig, tmp_path: Path) -> None:
    for name in ("off", "on"):
        assert train(make_config(name, train={"compile": name})) == 0
    off, on = (metrics(tmp_path / name) for name in ("off", "on"))
    for a, b in zip(off, on, strict=True):
        assert a == pytest.approx(b, rel=1e-3)


@pytest.mark.slow
def test_wandb_offline_records_and_resumes_the_same_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    for steps in (4, 8):
        assert train(make_config(wandb={"mode": "offline"}, train={"max_steps": steps})) == 0
    runs = sorted(path.name for path in (tmp_path / "run/wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert len({name.rsplit("-", 1)[1] for name in runs}) == 1

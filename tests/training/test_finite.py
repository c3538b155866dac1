"""Numbers that are not finite: found in their step, explained, kept away from weights and checkpoints, rolled back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.inference.sampling import draw
from gpt.model import transformer
from gpt.model.hardware import Hardware
from gpt.text.shards import prepare
from gpt.training.evaluation import Evaluation
from gpt.training.finite import Diverged, FiniteWatch, StepStart
from gpt.training.run import train
from gpt.training.trainer import Trainer

from .conftest import MakeConfig
from .test_trainer import files_of, metrics

CPU = Hardware(torch.device("cpu"), "fp32")
SMALL = {"max_steps": 9, "eval_every": 3, "sample_tokens": 0}


def poison_sequence(monkeypatch: pytest.MonkeyPatch, config: Any, sequence: int) -> str:
    """Have the second block's MLP give NaN for one training sequence, whenever it is seen; its text."""
    corpus = prepare(config.data, config.tokenizer)
    trainer = Trainer(config, corpus, CPU, Path(config.run_dir))
    wanted = torch.from_numpy(trainer.data.batch(sequence, 1)[0])[0]
    embedded, forward = transformer.Decoder.embedded, transformer.MLP.forward
    seen: dict[str, torch.Tensor] = {}

    def noting(self: Any, tokens: torch.Tensor, *others: Any) -> torch.Tensor:
        seen["rows"] = (tokens == wanted).all(1) if tokens.shape[1] == len(wanted) else torch.zeros(len(tokens)) > 0
        seen["block"] = torch.tensor(0)
        return embedded(self, tokens, *others)

    def poisoned(self: Any, x: torch.Tensor) -> torch.Tensor:
        seen["block"] = seen["block"] + 1
        result = forward(self, x)
        return result.masked_fill(seen["rows"][:, None, None], math.nan) if seen["block"] == 2 else result

    monkeypatch.setattr(transformer.Decoder, "embedded", noting)
    monkeypatch.setattr(transformer.MLP, "forward", poisoned)
    return corpus.tokenizer.decode(wanted.tolist())


@pytest.mark.parametrize("split", [(4, 1), (1, 4)])
def test_it_stops_before_a_weight_is_touched_and_names_the_place(
    split: tuple[int, int], make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = make_config(train=SMALL | {"batch_size": split[0], "grad_accum_steps": split[1]}, model={"dropout": 0.1})
    with monkeypatch.context() as patch:
        text = poison_sequence(patch, config, 4 * 4 + 2)
        assert train(config) == 1
    said = capsys.readouterr().err
    assert "step 5: the loss or its gradient is not finite" in said
    assert "first in the output of blocks.1.mlp" in said
    assert f"step-00000003, is intact" in said  # noqa: F541
    (line,) = (tmp_path / "run/nonfinite.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert (found["step"], found["first_sequence"], found["sequences"]) == (5, 16, 4)
    assert (found["micro_batch"], found["rows"]) == ((0, [2]) if split == (4, 1) else (2, [0]))
    assert found["texts"][0].startswith(text)
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("step-*")] == ["step-00000003"]
    assert train(config) == 0  # without the poison, the same run goes on


def test_rollback_goes_on_without_the_batch(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a run that never had the batch: one whose feed was told to leave it out from the start."""
    config = make_config(train=SMALL | {"on_nonfinite": "rollback"}, model={"dropout": 0.1})
    with monkeypatch.context() as patch:
        poison_sequence(patch, config, 4 * 4 + 2)
        assert train(config) == 0
    said = capsys.readouterr().err
    assert "Rollback 1 of at most 3: continuing from" in said
    assert "without the sequences 16 to 19" in said
    other = make_config("without", train=SMALL, model={"dropout": 0.1})
    next_sequence = Trainer.next_sequence
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "next_sequence", lambda self: 20 if self.state.sequences == 16 else next_sequence(self))
        assert train(other) == 0
    for link in ("step-00000009", "best"):
        assert files_of(tmp_path / "run/checkpoints" / link) == files_of(tmp_path / "without/checkpoints" / link)
    lines, others = metrics(tmp_path / "run"), metrics(tmp_path / "without")
    assert [line.pop("tokens") for line in lines] == [4 * 16 * line["step"] for line in lines]
    assert lines == [{name: value for name, value in line.items() if name != "tokens"} for line in others]
    state = json.loads((tmp_path / "run/checkpoints/step-00000009/trainer/state.json").read_text())
    assert (state["rollbacks"], state["skipped"], state["sequences"]) == (1, [[16, 4]], 40)


def test_rollback_before_the_first_checkpoint_and_a_kill_after_it(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def config(name: str) -> Any:
        return make_config(name, train=SMALL | {"on_nonfinite": "rollback"})

    with monkeypatch.context() as patch:
        poison_sequence(patch, config("straight"), 5)
        assert train(config("straight")) == 0
        for stop in (1, 2, 4, 7):
            assert train(config("stopped"), stop_at=stop) == 0
        assert train(config("stopped")) == 0
    for link in ("step-00000009", "best"):
        assert files_of(tmp_path / "straight/checkpoints" / link) == files_of(tmp_path / "stopped/checkpoints" / link)


def test_rollbacks_end(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transformer.MLP, "forward", lambda self, x: x * math.nan)
    config = make_config(train=SMALL | {"on_nonfinite": "rollback", "max_rollbacks": 2})
    assert train(config) == 1
    said = capsys.readouterr().err
    assert said.count("Rollback ") == 2
    assert "There is no checkpoint yet. This run has rolled back train.max_rollbacks=2 times" in said
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_gradient_that_overflows_is_named(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = transformer.MLP.forward

    def poisoned(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = x * 1
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient * math.inf)
        return forward(self, x)

    monkeypatch.setattr(transformer.MLP, "forward", poisoned)
    assert train(make_config(train=SMALL)) == 1
    assert "first in the gradient of the output of blocks.1.mlp_norm" in capsys.readouterr().err


def test_a_fault_that_does_not_come_again_is_told(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summed, calls = transformer.Decoder.summed_loss, iter(range(100))
    monkeypatch.setattr(
        transformer.Decoder, "summed_loss", lambda self, *x: summed(self, *x) * (math.nan if next(calls) == 1 else 1)
    )
    assert train(make_config(train=SMALL)) == 1
    assert "computed again, every number of it was finite" in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_device_that_is_not_looked_at_keeps_its_weights(
    optimizer: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    """What CUDA does, on a CPU: steps go on unseen, and the weights stay those before the first bad one."""
    config = make_config(optimizer={"name": optimizer, "l1": 0.01}, model={"dropout": 0.1})
    trainer = Trainer(config, prepare(config.data, config.tokenizer), CPU, tmp_path / "run")
    trainer.watch.looking = False
    for _ in range(3):
        trainer.update()
    seen = Trainer(config, trainer.corpus, CPU, tmp_path / "run")
    for _ in range(3):
        seen.update()
    states = [{**dict(t.model.named_parameters()), **t.optimizers.state_tensors()} for t in (seen, trainer)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=0, msg=name)
    before = {name: value.clone() for name, value in states[1].items()}
    poisoned = trainer.model.embed.weight.register_hook(lambda gradient: gradient * math.nan)
    trainer.update()
    poisoned.remove()
    trainer.update()
    for name, value in (dict(trainer.model.named_parameters()) | trainer.optimizers.state_tensors()).items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(Diverged, match="step 4: the loss or its gradient is not finite") as caught:
        trainer.watch.check()
    assert caught.value.start is not None
    assert (caught.value.start.step, caught.value.start.first_sequence) == (3, 12)


def test_the_watch_forgets_what_was_looked_at() -> None:
    watch = FiniteWatch(torch.device("cpu"))
    watch.looking = False
    for step in range(6):
        watch.begin(StepStart(step, 4 * step, {}))
        watch.note(torch.tensor(math.nan if step == 4 else 1.0))
        if step == 2:
            watch.check()
            assert not watch.unchecked
    with pytest.raises(Diverged, match="step 5") as caught:
        watch.check()
    assert caught.value.start == StepStart(4, 16, {})


def test_a_loss_on_held_out_text_that_is_not_finite_blames_no_batch(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gpt.training.trainer.evaluate", lambda *_: Evaluation(math.nan, 100, 100))
    assert train(make_config(train=SMALL | {"on_nonfinite": "rollback"})) == 1
    said = capsys.readouterr().err
    assert "step 3: the validation loss is nan" in said
    assert "No batch is to blame that could be left out" in said


def test_fp16_gradients_that_never_are_finite_end_the_run(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    trainer = Trainer(config, prepare(config.data, config.tokenizer), CPU, tmp_path / "run")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.model.embed.weight.register_hook(lambda gradient: gradient * math.nan)
    for _ in range(4):  # 8, 4, 2, 1
        trainer.update()
    with pytest.raises(Diverged, match="step 5: the loss or its gradient is not finite"):
        trainer.update()


def test_a_sample_that_cannot_be_is_told_and_training_goes_on(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gpt.inference.rows.draw", lambda logits, times: draw(logits * math.nan, times))
    assert train(make_config(train={"max_steps": 4, "eval_every": 2})) == 0
    assert "step      2  no sample: the model's logits are no finite numbers" in capsys.readouterr().err

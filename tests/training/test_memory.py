"""The rehearsal of a run against what real tensors take, and activation checkpointing against plain backward."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

from gpt.config import ModelConfig
from gpt.model.hardware import choose_hardware
from gpt.model.transformer import Decoder
from gpt.text.shards import prepare
from gpt.training import memory
from gpt.training.memory import predict_memory
from gpt.training.rehearsal import LiveBytes, rehearse
from gpt.training.run import train
from gpt.training.trainer import Trainer

from .conftest import MakeConfig

CHECKPOINTED = {"train": {"activation_checkpointing": True}, "model": {"dropout": 0.2}}
VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {"train": {"grad_accum_steps": 2}},
    "muon": {"optimizer": {"name": "muon"}},
    "bf16-gpt2": {"model": {"dialect": "gpt2"}, "train": {"precision": "bf16"}},
    "checkpointed": CHECKPOINTED,
}


def make_trainer(make_config: MakeConfig, **changes: Any) -> Trainer:
    config = make_config(**changes)
    hardware = choose_hardware(config.train.device, config.train.precision, config.model.n_embd)
    return Trainer(config, prepare(config.data, config.tokenizer), hardware, Path(config.run_dir))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_rehearsal_counts_what_a_real_update_takes(variant: str, make_config: MakeConfig) -> None:
    trainer = make_trainer(make_config, **VARIANTS[variant])
    found = rehearse(trainer)
    trainer.update()  # makes the optimizer's state
    assert found.optimizer == sum(tensor.nbytes for tensor in trainer.optimizers.state_tensors().values())
    with LiveBytes() as real:
        trainer.update()
    assert found.step == pytest.approx(real.peak, rel=0.02)  # the real one also makes a few single numbers
    tokens = torch.zeros(4, 16, dtype=torch.long)
    with torch.no_grad(), LiveBytes() as real, trainer.hardware.autocast():
        trainer.model.eval()(tokens, tokens)
    assert found.evaluation == pytest.approx(real.peak, rel=0.02)


def test_the_option_reaches_the_blocks(make_config: MakeConfig) -> None:
    deep = {"n_layer": 8}
    plain = rehearse(make_trainer(make_config, model=deep))
    recomputing = rehearse(make_trainer(make_config, model=deep, train={"activation_checkpointing": True}))
    assert recomputing.step < 0.65 * plain.step
    assert (recomputing.optimizer, recomputing.evaluation) == (plain.optimizer, plain.evaluation)


def test_live_bytes_are_those_of_storages_and_end_with_them() -> None:
    with LiveBytes() as counted:
        a = torch.ones(1000)
        view = a[:10]
        b = a * 2
        del a
        assert counted.live == 8000, "a view keeps its storage"
        del view
        assert counted.live == 4000
        b.add_(1)
    assert (counted.live, counted.peak) == (4000, 8000)


def test_a_prediction_changes_nothing(make_config: MakeConfig) -> None:
    told, untold = make_trainer(make_config, **CHECKPOINTED), make_trainer(make_config, **CHECKPOINTED)
    torch.manual_seed(5)
    untold.update()
    torch.manual_seed(5)
    predict_memory(told)
    told.update()
    assert told.state == untold.state
    for mine, expected in zip(told.model.parameters(), untold.model.parameters(), strict=True):
        assert torch.equal(mine, expected)


def test_the_parts_of_a_prediction_add_up_to_the_peak(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(make_config)
    weights = sum(parameter.nbytes for parameter in trainer.model.parameters())
    trainer.process_memory = 10**9 - weights
    monkeypatch.setattr(memory, "peak_memory", lambda _: 10**9 + 5)
    predicted = predict_memory(trainer)
    assert predicted.process + predicted.weights == 10**9
    assert predicted.weights == weights
    assert predicted.snapshot == weights + predicted.optimizer
    assert predicted.peak == 10**9 + predicted.optimizer + predicted.step + predicted.snapshot + predicted.allowance
    monkeypatch.setattr(memory, "peak_memory", lambda _: 10**10)  # loading took more than training will
    assert predict_memory(trainer).peak == 10**10


def test_an_update_never_looks_at_its_data(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each look would wait for the device. A rehearsal has no data, so a look raises."""
    update = Trainer.update

    def looking(self: Trainer) -> Any:
        loss, norm, scale = update(self)
        return loss, norm, scale + float(loss)

    for name in ("adamw", "muon"):
        rehearse(make_trainer(make_config, optimizer={"name": name}))
    monkeypatch.setattr(Trainer, "update", looking)
    with pytest.raises(DataDependentOutputException):
        rehearse(make_trainer(make_config))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_update_never_waits_for_the_gpu(optimizer: str, make_config: MakeConfig) -> None:
    trainer = make_trainer(make_config, optimizer={"name": optimizer}, train={"device": "cuda", "precision": "bf16"})
    trainer.update()  # may wait, as it allocates and chooses kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.update()
        trainer.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")


RESUME = """
import sys
from pathlib import Path
from gpt.composition import load_config
from gpt.model.hardware import choose_hardware
from gpt.text.shards import prepare
from gpt.model.process import resident_memory, peak_memory
from gpt.training.trainer import Trainer
from train import COMMAND
config = load_config(COMMAND, sys.argv[1:])
corpus, hardware = prepare(config.data, config.tokenizer), choose_hardware("cpu", "fp32", 64)
before = resident_memory()
trainer = Trainer(config, corpus, hardware, Path(config.run_dir))
if trainer.restore():
    print(peak_memory(hardware.device) - before)
else:
    trainer.update()
    trainer.save()
"""


@pytest.mark.slow
def test_resuming_holds_nothing_twice(corpus_files: Path, tmp_path: Path) -> None:
    options = ["data=text", f"data.files=[{corpus_files}]", f"data.prepared_dir={tmp_path / 'prepared'}"]
    options += ["tokenizer=byte", "optimizer=adamw", "model.n_embd=1024", "model.n_head=8", "model.n_layer=8"]
    options += ["model.context_length=16", "train.precision=fp32", f"run_dir={tmp_path / 'run'}"]
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", RESUME, *options], capture_output=True, text=True, check=True)
    state = sum(path.stat().st_size for path in (tmp_path / "run/checkpoints/step-00000001").rglob("*.safetensors"))
    assert state > 1e9
    largest = 4 * 2 * 2752 * 1024  # gate and up of one block
    libraries = 150e6  # the optimizers import some
    assert int(run.stdout) < state + 2 * largest + libraries


@pytest.mark.skipif(sys.platform != "linux", reason="a list of what is mapped")
def test_what_is_restored_maps_no_files(make_config: MakeConfig, tmp_path: Path) -> None:
    """A file once for every tensor of it is more address space than a limited process has."""
    assert train(make_config()) == 0
    trainer = make_trainer(make_config)
    assert trainer.restore()
    assert str(tmp_path / "run") not in Path("/proc/self/maps").read_text()


def saved_bytes_and_gradients(model: Decoder, seed: int) -> tuple[int, list[Tensor]]:
    """Bytes that a forward pass keeps for backward besides parameters, and the gradients."""
    storages: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(seed)
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(seed))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tokens, tokens)
    loss.backward()
    return sum(storages.values()), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("dialect", ["gpt2", "qwen3"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_blocks_give_the_same_gradients_from_less_memory(dialect: str, dropout: float) -> None:
    torch.manual_seed(0)
    config = ModelConfig(dialect=dialect, n_layer=6, n_head=2, n_embd=32, context_length=16, dropout=dropout)
    plain = Decoder(config, 64)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter += 0.05 * torch.randn_like(parameter)  # blocks do nothing at first
    recomputing = copy.deepcopy(plain)
    recomputing.recompute = True
    kept, gradients = saved_bytes_and_gradients(plain, 1)
    kept_less, the_same = saved_bytes_and_gradients(recomputing, 1)
    assert all(map(torch.equal, gradients, the_same))
    assert kept_less < kept / 3

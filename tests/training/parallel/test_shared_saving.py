"""Checkpoints that all processes write together: the same content, read by any number, and whole or not there."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from gpt.config import RunConfig
from gpt.model.checksums import damage
from gpt.model.huggingface import load_model
from gpt.options import UserError
from gpt.training.checkpoints import read_optimizer
from gpt.training.metrics import read_lines
from gpt.training.parallel import choice, shared_saving
from gpt.training.run import train
from tests.training.conftest import MakeConfig
from tests.training.parallel.conftest import Together
from tests.training.parallel.test_sizes import part


def saving(config: RunConfig, how: str, **options: Any) -> RunConfig:
    return replace(config, train=replace(config.train, save=how, **options))


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in checkpoint.glob("*.safetensors"):
        found |= load_file(file)
    return found | {f"optimizer {name}": tensor for name, tensor in read_optimizer(checkpoint)}


def assert_equal(one: Path, other: Path) -> None:
    a, b = tensors_of(one), tensors_of(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def same_run_twice(config: RunConfig, world: int, folder: Path) -> list[int]:
    """In one of `world` processes: the same training, its checkpoints gathered, written together, and waited for."""
    shared = saving(config, "sharded")
    return [
        part(saving(config, "gathered"), world, "fsdp", folder / "gathered", None),
        part(shared, world, "fsdp", folder / "sharded", None),
        part(saving(shared, "sharded", async_save=False), world, "fsdp", folder / "waiting", None),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "optimizer", "model"),
    [
        (2, "adamw", {"dialect": "gpt2"}),
        (3, "muon", {"dialect": "qwen3"}),
        (4, "muon", {"dialect": "llama", "n_head": 4, "n_kv_head": 2}),
    ],
)
def test_shared_checkpoints_hold_what_gathered_ones_do(
    world: int, optimizer: str, model: dict[str, Any], make_config: MakeConfig, together: Together, tmp_path: Path
) -> None:
    config = make_config(
        optimizer={"name": optimizer}, model=model, train={"max_steps": 6, "eval_every": 3, "keep_checkpoints": 9}
    )
    assert together(world, same_run_twice, config, world, tmp_path) == [[0, 0, 0]] * world
    for step in (3, 6):
        name = f"checkpoints/step-{step:08d}"
        gathered, shared = tmp_path / "gathered" / name, tmp_path / "sharded" / name
        assert len(list(shared.glob("model-*.safetensors"))) >= world
        assert len(list(shared.glob("trainer/optimizer-*.safetensors"))) >= world
        assert not list((tmp_path / "sharded/checkpoints").glob("partial-*"))
        assert_equal(gathered, shared)
        assert_equal(gathered, tmp_path / "waiting" / name)
        assert damage(shared) is None
        for same in ("config.json", "tokenizer.json", "trainer/random.safetensors"):
            assert (gathered / same).read_bytes() == (shared / same).read_bytes()
        states = [json.loads((one / "trainer/state.json").read_text()) for one in (gathered, shared)]
        assert states[0]["sequences"] == states[1]["sequences"]
        theirs = transformers.AutoModelForCausalLM.from_pretrained(shared)
        ids = torch.arange(8)[None]
        with torch.no_grad():
            torch.testing.assert_close(theirs(ids).logits, load_model(gathered)(ids), rtol=1e-4, atol=1e-4)
    assert (tmp_path / "sharded/checkpoints/best").resolve().is_dir()


@pytest.mark.slow
def test_what_four_write_together_one_two_and_three_continue(
    make_config: MakeConfig, together: Together, tmp_path: Path
) -> None:
    config = make_config(optimizer={"name": "muon"}, train={"max_steps": 8, "eval_every": 2})
    straight = tmp_path / "straight"
    assert part(config, 1, "auto", straight, None) == 0
    shared = saving(config, "sharded")
    assert together(4, part, shared, 4, "fsdp", tmp_path / "four", 4) == [0] * 4
    for world, parallel, how in ((1, "auto", "auto"), (2, "ddp", "auto"), (3, "fsdp", "sharded")):
        run_dir = tmp_path / f"from-{world}"
        shutil.copytree(tmp_path / "four", run_dir, symlinks=True)
        again = saving(config, how)
        if world == 1:
            assert part(again, 1, parallel, run_dir, None) == 0
        else:
            assert together(world, part, again, world, parallel, run_dir, None) == [0] * world
        for a, b in zip(read_lines(straight / "metrics.jsonl"), read_lines(run_dir / "metrics.jsonl"), strict=True):
            for key in ("train/loss", "val/loss"):
                assert a.get(key) == pytest.approx(b.get(key), abs=1e-5), (world, a["step"], key)


def failing(config: RunConfig, world: int, run_dir: Path, guilty: int) -> int:
    """In one of `world` processes, of which one finds the disk full as it writes its second file of the second
    checkpoint. -1: it has told so."""
    write, count = shared_saving.write_safetensors, [0]

    def breaking(*arguments: Any, **options: Any) -> None:
        count[0] += 1
        if int(os.environ["RANK"]) == guilty and count[0] == 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(arguments[1]))
        write(*arguments, **options)

    shared_saving.write_safetensors = breaking  # type: ignore[assignment]
    try:
        return part(config, world, "fsdp", run_dir, None)
    except OSError as error:
        return -1 if error.errno == errno.ENOSPC else -2


@pytest.mark.slow
@pytest.mark.parametrize(("guilty", "behind"), [(1, True), (0, False)])
def test_a_full_disk_of_one_ends_all_and_leaves_the_checkpoint_before(
    guilty: int, behind: bool, make_config: MakeConfig, together: Together, tmp_path: Path
) -> None:
    config = make_config(train={"max_steps": 60, "eval_every": 3, "async_save": behind})
    found = together(2, failing, saving(config, "sharded"), 2, tmp_path / "run", guilty)
    assert found[guilty] == -1
    assert found[1 - guilty] == 1
    checkpoints = tmp_path / "run/checkpoints"
    assert [path.name for path in checkpoints.glob("step-*")] == ["step-00000003"]
    assert damage(checkpoints / "step-00000003") is None
    assert (checkpoints / "best").resolve().name == "step-00000003"
    assert not list(checkpoints.glob("partial-*"))
    assert together(2, part, saving(config, "sharded", max_steps=6), 2, "fsdp", tmp_path / "run", None) == [0, 0]
    assert (checkpoints / "step-00000006").is_dir()


@pytest.mark.parametrize(
    ("options", "why"), [({}, "a process has the whole model"), ({"lora": {"rank": 2}}, "adapters are small")]
)
def test_what_is_not_in_shards_cannot_be_saved_so(
    options: dict[str, Any], why: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    if options:
        assert train(make_config("base", train={"max_steps": 2})) == 0
        options = options | {"init_from": str(tmp_path / "base")}
    with pytest.raises(UserError, match=rf"train\.save=sharded: .*{why}.*leave train\.save at auto"):
        train(saving(make_config(**options), "sharded"))


def with_little_memory(config: RunConfig, world: int, run_dir: Path) -> int:
    choice.available_memory = lambda device: 10_000  # type: ignore[assignment]
    return part(config, world, "fsdp", run_dir, None)


@pytest.mark.slow
def test_all_write_together_where_one_has_not_the_memory(
    make_config: MakeConfig, together: Together, tmp_path: Path
) -> None:
    config = make_config(train={"max_steps": 2})
    assert together(2, with_little_memory, config, 2, tmp_path / "little") == [0, 0]
    assert together(2, part, config, 2, "fsdp", tmp_path / "enough", None) == [0, 0]
    little, enough = (tmp_path / f"{run}/checkpoints/step-00000002" for run in ("little", "enough"))
    assert (little / "model.safetensors.index.json").is_file()
    assert (enough / "model.safetensors").is_file()
    assert_equal(little, enough)


def test_room_for_all_counts_what_is_still_to_come() -> None:
    assert choice.whole_fits(10**9, None, 1)
    assert choice.whole_fits(10**9, 20 * 10**9, 0)  # 12 GB of at most 14
    assert not choice.whole_fits(10**9, 20 * 10**9, 0.5)
    assert choice.whole_fits(10**9, 40 * 10**9, 1)


@pytest.mark.slow
def test_a_run_killed_after_the_checkpoint_of_its_base_continues(
    make_config: MakeConfig, together: Together, tmp_path: Path
) -> None:
    """That checkpoint has weights, but no optimizer has done a step."""
    assert train(make_config("base", train={"max_steps": 2})) == 0
    config = saving(
        make_config(init_from=str(tmp_path / "base"), train={"max_steps": 4, "keep_checkpoints": 9}), "sharded"
    )
    run_dir = tmp_path / "run"
    assert together(2, part, config, 2, "fsdp", run_dir, 1) == [0, 0]
    shutil.rmtree(run_dir / "checkpoints/step-00000001")
    assert damage(run_dir / "checkpoints/step-00000000") is None
    assert together(2, part, config, 2, "fsdp", run_dir, None) == [0, 0]
    assert (run_dir / "checkpoints/step-00000004").is_dir()

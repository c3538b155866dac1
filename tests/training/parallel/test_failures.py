"""What happens to all when one process dies, or is asked to stop; under torchrun, as users start it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.training.parallel.conftest import environment, free_port

REPOSITORY = Path(__file__).parents[3]
STEPS = 40
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")]


@pytest.fixture
def options(corpus_files: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def make(name: str, *others: str) -> list[str]:
        usual = [
            "model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.context_length=32", "model.dropout=0.1",
            "tokenizer=byte", "data=text", f"data.files=[{corpus_files}]", f"data.prepared_dir={tmp_path}/prepared",
            f"run_dir={tmp_path}/{name}", f"train.max_steps={STEPS}", "train.global_batch_size=8", "train.batch_size=2",
            "train.eval_every=20", "train.checkpoint_every=5", "train.log_every=1", "train.device=cpu",
        ]  # fmt: skip
        given = {option.partition("=")[0] for option in others}
        return [*(option for option in usual if option.partition("=")[0] not in given), *others]

    return make


def torchrun(options: list[str], *own: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=4", f"--master-port={free_port()}"]
    return subprocess.Popen(
        [*command, *own, str(REPOSITORY / "train.py"), *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Leaves none of its processes behind."""
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    metrics, ends = run_dir / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("train/loss") >= step):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < ends
        time.sleep(0.02)


def wait_for_writing(run_dir: Path, process: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + 60
    while not list((run_dir / "checkpoints").glob("partial-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < ends
        time.sleep(0.001)


def process_of_rank(rank: int, run_dir: Path) -> int:
    """The id of the process that trains as this rank in a run folder."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, settings = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        if f"RANK={rank}".encode() in settings and f"run_dir={run_dir}".encode() in words:
            return int(folder.name)
    raise AssertionError(f"there is no rank {rank}")


def last_weights(run_dir: Path) -> list[bytes]:
    folder = run_dir / f"checkpoints/step-{STEPS:08d}"
    files = [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("trainer/optimizer*.safetensors"))]
    assert len(files) >= 2
    return [file.read_bytes() for file in files]


@pytest.fixture
def straight(options: Callable[..., list[str]], tmp_path: Path) -> Callable[..., list[bytes]]:
    """What four processes end with that nobody disturbs."""

    def make(*how: str) -> list[bytes]:
        with ending(torchrun(options("straight", *how))) as process:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
        return last_weights(tmp_path / "straight")

    return make


@pytest.mark.parametrize(
    "how", [["parallel=ddp"], ["parallel=fsdp"], ["parallel=fsdp", "train.save=sharded", "train.checkpoint_every=1"]]
)
def test_torchrun_starts_again_what_a_kill_has_ended(
    how: list[str], options: Callable[..., list[str]], straight: Callable[..., list[bytes]], tmp_path: Path
) -> None:
    """The last one while all write a checkpoint together."""
    run_dir = tmp_path / "killed"
    with ending(torchrun(options("killed", *how), "--max-restarts=2")) as process:
        wait_for_step(run_dir, 17, process)
        killed = process_of_rank(2, run_dir)
        if "train.save=sharded" in how:
            wait_for_writing(run_dir, process)
        os.kill(killed, signal.SIGKILL)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert re.findall(r"rank \d \(process \d+", errors) == [f"rank 2 (process {killed}"], errors
    assert re.search(r"continuing at step [1-3]\d of 40", errors)
    assert "Traceback" not in errors.replace("To enable traceback", "")
    assert last_weights(run_dir) == straight(*how)


def test_a_signal_to_one_stops_all_after_the_same_step(
    options: Callable[..., list[str]], straight: Callable[..., list[bytes]], tmp_path: Path
) -> None:
    """Started one by one, as SLURM's srun does, so that each has an exit status of its own."""
    run_dir = tmp_path / "stopped"

    def start() -> list[subprocess.Popen[str]]:
        port = free_port()
        command = [sys.executable, str(REPOSITORY / "train.py"), *options("stopped", "parallel=ddp")]
        return [
            subprocess.Popen(command, env=os.environ | environment(rank, 4, port), stderr=subprocess.PIPE, text=True)
            for rank in range(4)
        ]

    processes = start()
    wait_for_step(run_dir, 17, processes[0])
    processes[2].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 4, said
    assert "and saved. The same command continues." in said[0]
    assert not any(said[1:])
    steps = sorted(int(path.name[5:]) for path in run_dir.glob("checkpoints/step-*"))
    assert [step for step in steps if step % 5] in ([steps[-1]], [])
    assert steps[-1] >= 17
    processes = start()
    for process in processes:
        process.communicate(timeout=240)
        assert process.returncode == 0
    assert last_weights(run_dir) == straight("parallel=ddp")

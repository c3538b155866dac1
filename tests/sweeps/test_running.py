"""Sweeps of scripts that end well, badly, or by a signal, as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts import ENVIRONMENT, empty_folder, run_script, write_script

__all__ = ["empty_folder"]  # a fixture


def test_multirun_runs_all_even_when_one_fails(empty_folder: Path) -> None:
    body = "print(config.run_dir, flush=True)\nreturn 5 if config.seed == 1 else 0"
    done = run_script(empty_folder, body, ["--multirun", "seed=1,2", "wandb.project=a b"])
    assert done.returncode == 1
    assert done.stdout == "runs/stdlib-mini/seed=1\nruns/stdlib-mini/seed=2\n"
    assert "1 of 2 runs failed: runs/stdlib-mini/seed=1 (exit status 5)" in done.stderr
    done = run_script(empty_folder, body, ["-m", "seed=2,3"])
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_an_interrupt_stops_a_sweep(empty_folder: Path) -> None:
    done = run_script(empty_folder, "print(config.seed, flush=True)\nraise KeyboardInterrupt", ["-m", "seed=1,2"])
    assert (done.returncode, done.stdout) == (130, "1\n")


def test_a_sweep_ends_with_a_summary(empty_folder: Path) -> None:
    body = """
    import json, os
    os.makedirs(config.run_dir)
    with open(config.run_dir + "/metrics.jsonl", "w") as file:
        for step in range(1, 5):
            loss = abs(step - config.seed) + config.seed / 8
            file.write(json.dumps({"step": step, "val/loss": loss, "val/bits_per_byte": loss / 2}) + "\\n")
    if config.seed == 2: raise KeyboardInterrupt
    return 5 if config.seed == 3 else 0
    """
    done = run_script(empty_folder, body, ["-m", "seed=3,1,2,4", "run_dir=s"])
    assert done.returncode == 130
    assert done.stdout == ""
    found = [json.loads(line) for line in (empty_folder / "s/sweep.jsonl").read_text().splitlines()]
    assert [(line["seed"], line["val/loss"], line["step"], line["state"]) for line in found] == [
        (1, 0.125, 1, "done"),
        (2, 0.25, 2, "interrupted"),
        (3, 0.375, 3, "failed with exit status 5"),
        (4, None, None, "not started"),
    ]
    assert "1 of 4 runs failed: s/seed=3 (exit status 5)" in done.stderr
    assert "2 of 4 runs are not done. The same command continues." in done.stderr
    assert (empty_folder / "s/sweep.png").is_file()


def test_a_summary_on_a_full_disk_is_one_line(empty_folder: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    (empty_folder / "s").mkdir()
    (empty_folder / "s/sweep.jsonl.partial").symlink_to("/dev/full")
    done = run_script(empty_folder, "pass", ["-m", "seed=1,2", "run_dir=s"])
    assert done.returncode == 1
    assert done.stderr.endswith("script.py: s/sweep.jsonl: No space left on device\n")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_a_sweep_lets_its_run_finish(number: int, empty_folder: Path) -> None:
    body = """
    import signal, time
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    print("running", flush=True)
    while not stopped: time.sleep(0.01)
    print("saved", flush=True)
    return 143
    """
    write_script(empty_folder, body)
    command = [sys.executable, "script.py", "-m", "seed=1,2"]
    process = subprocess.Popen(
        command, cwd=empty_folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "saved\n"), err
    assert "2 of 2 runs are not done. The same command continues." in err

"""What a checkpoint of GPT-2 124M with AdamW's state takes of each process under FSDP: gathered in rank 0, or sharded.

    python -m benchmarks.shared_saving --text input.txt --processes 4

Each repetition starts so many processes over gloo on this machine, which make an update and save, waiting for the
end. `more memory` is the peak of a process meanwhile, above what it held before: in rank 0, and the most of all others
(Linux only).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.memory import BATCH
from benchmarks.side_by_side import ROOT, Results, median, peak_bytes, print_table, spread, write_json

CONTENDERS = ("gathered", "sharded")


def measure(how: str, text: Path, folder: Path) -> dict[str, Any]:
    """In one of the processes."""
    from gpt.composition import load_config
    from gpt.model.hardware import choose_hardware
    from gpt.model.process import resident_memory
    from gpt.text.shards import prepare
    from gpt.training.parallel.ranks import join
    from gpt.training.trainer import Trainer
    from train import COMMAND

    options = ["data=text", f"data.files=[{text}]", f"data.prepared_dir={folder}/prepared", f"run_dir={folder}/run"]
    options += ["model=gpt2", *BATCH, "train.batch_size=1", "parallel=fsdp", f"train.save={how}"]
    config = load_config(COMMAND, options)
    hardware = choose_hardware("cpu", "auto", config.model.n_embd)
    ranks = join(hardware.device)
    corpus = ranks.one_by_one(lambda: prepare(config.data, config.tokenizer))
    trainer = Trainer(config, corpus, hardware, Path(config.run_dir), ranks)
    trainer.update()
    before = resident_memory() or 0
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    started = time.perf_counter()
    trainer.save()
    trainer.writer.wait()
    found = ranks.gather((peak_bytes() - before, time.perf_counter() - started))
    return {
        "rank0_mb": found[0][0] / 1e6,
        "others_mb": max(peak for peak, _ in found[1:]) / 1e6,
        "seconds": max(seconds for _, seconds in found),
    }


def together(how: str, text: Path, processes: int) -> dict[str, Any]:
    """What rank 0 of so many processes prints."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        names = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": free.getsockname()[1]}
        common = os.environ | {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
        free.close()
        command = [sys.executable, "-m", "benchmarks.shared_saving", "--worker", how, str(text), folder]
        started = [
            subprocess.Popen(
                command, cwd=ROOT, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(processes)
        ]  # fmt: skip
        ended = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, ended, strict=True):
        if process.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{errors[-3000:]}")
    return json.loads(ended[0][0].strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="any text file, to train on")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    arguments = parser.parse_args()
    results: Results = {how: [] for how in CONTENDERS}
    for number in range(arguments.repeats):
        for how in CONTENDERS:
            results[how].append(together(how, arguments.text.resolve(), arguments.processes))
            print(f"  {number + 1}/{arguments.repeats} {how}: {results[how][-1]}", file=sys.stderr, flush=True)
    rows = []
    for how in CONTENDERS:
        others = f"{median(results, how, 'others_mb'):,.0f}"
        rows.append([how, spread(results, how, "rank0_mb", 0), others, spread(results, how, "seconds", 1)])
    print_table(["train.save=", "more memory in rank 0, MB", "in others, MB", "seconds"], rows)
    write_json(arguments.output, results, processes=arguments.processes, repeats=arguments.repeats)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))))
    else:
        main()

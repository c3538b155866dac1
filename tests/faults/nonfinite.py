"""A number that is not finite, met by a real run: initial weights with one huge row, of a rare character.

Every batch with that character overflows, all others train as ever. What the run says, and how it ends, with
`train.on_nonfinite=stop` and `rollback`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.faults.findings import Finding
from tests.faults.processes import Job, one_line, tiny, write_book

RARE = "☢"
HUGE = 1e30
SHAPE = {"model__dialect": "gpt2", "model__tie_embeddings": "false", "tokenizer": "char"}


def findings(scale: float) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        job = fine_tuning(Path(folder))
        stopped = job.run()
        steps = sorted(path.name for path in (job.run_dir / "checkpoints").glob("step-*"))
        report = (job.run_dir / "nonfinite.jsonl").read_text(encoding="utf-8") if stopped.status == 1 else "{}"
        told = "☢" in "".join(json.loads(report.splitlines()[0]).get("texts", []))
        good = one_line(stopped, 1) and "the output of" in stopped.said and told and not has_huge_state(job)
        yield Finding(
            "a batch whose numbers overflow, train.on_nonfinite=stop",
            f"exit status {stopped.status}, checkpoints {', '.join(steps)}, the batch named: {told}",
            good,
            stopped.seen,
        )
        rolled = job.changed(train__on_nonfinite="rollback", run_dir="rolled").run()
        again = job.changed(train__on_nonfinite="rollback").run()
        same = weights(job, "run") == weights(job, "rolled")
        yield Finding(
            "the same, train.on_nonfinite=rollback, from the start and continuing the stopped run",
            f"exit status {rolled.status} and {again.status}, {rolled.said.count('Rollback ')} rollbacks, "
            f"the same weights: {same}",
            (rolled.status, again.status, same) == (0, 0, True) and "Rollback 1" in rolled.said,
            "\n".join(line for line in rolled.said.splitlines() if "Rollback" in line or "not finite" in line),
        )


def fine_tuning(folder: Path) -> Job:
    """A run that starts from a model whose embedding of `RARE` is huge; the character is once in its text."""
    book = write_book(folder / "book.txt", paragraphs=70).read_text(encoding="utf-8").split("\n\n")
    held_out, text = "\n\n".join(book[:15]), book[15:]
    (folder / "held-out.txt").write_text(held_out, encoding="utf-8")
    text[len(text) // 2] += RARE
    (folder / "book.txt").write_text("\n\n".join(text), encoding="utf-8")
    base = tiny(folder, "base", train__max_steps=2, data__val_files="[held-out.txt]", **SHAPE)
    assert base.run().status == 0
    model = folder / "model"
    shutil.copytree(base.run_dir / "checkpoints/best", model, symlinks=False)
    shutil.rmtree(model / "trainer")
    vocabulary = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    tensors = load_file(model / "model.safetensors")
    tensors["transformer.wte.weight"][vocabulary[RARE]] *= HUGE / tensors["transformer.wte.weight"].abs().max()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    options = {name: value for name, value in base.options.items() if not name.startswith(("model.", "tokenizer"))}
    start = {
        "init_from": "model",
        "experiment": "null",
        "run_dir": "run",
        "train.sample_tokens": 0,
        "train.max_steps": 130,
        "train.max_epochs": 2,
    }
    return Job(folder, options=options | start)


def has_huge_state(job: Job) -> bool:
    """Whether a checkpoint's optimizer has been touched by the batch."""
    files = (job.run_dir / "checkpoints").glob("step-*/trainer/optimizer.safetensors")
    return any(tensor.abs().max() > HUGE for file in files for tensor in load_file(file).values())


def weights(job: Job, run_dir: str) -> bytes:
    folders = sorted((job.cwd / run_dir / "checkpoints").glob("step-*"))
    return (folders[-1] / "model.safetensors").read_bytes() if folders else b""


if __name__ == "__main__":
    for found in findings(1.0):
        print(found)

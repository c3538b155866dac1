"""A bench for bad input: a folder with one of everything, the commands run in it, what they said and what they changed.

`make_stock` trains the tiny models once; a case gets a copy of the folder, spoils something and runs a command there,
within this process (`attempt`) or as a real one (`attempt_process`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import os
import random
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.cli import Command, main

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {name: f"{name}.py" for name in ("train", "sample", "evaluate", "export")} | {"prepare": "data/prepare.py"}
PREPARED = "prepared"  # a cache of tokenized text: that it grows is no damage
WORDS = ["leaf", "branch", "root", "tree", "sun", "rain", "grows", "falls", "and", "葉"]
SHAPE = ["model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.context_length=16"]
BRIEF = [
    "train.max_steps=2", "train.batch_size=2", "train.eval_every=2", "train.eval_tokens=50", "train.log_every=2",
    "train.sample_tokens=2", "train.device=cpu",
]  # fmt: skip
TEXT = ["data=text", "data.files=[book.txt]", f"data.prepared_dir={PREPARED}"]
PAIRS = [
    "data=pairs", "data.files=[qa.jsonl]", "data.prompt={question}\\n", "data.completion={answer}",
    f"data.prepared_dir={PREPARED}",
]  # fmt: skip
TRAIN = [*TEXT, "tokenizer=byte", *SHAPE, *BRIEF]


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `status` None: it did not return, and `crash` is the traceback. `changed` are the files and
    folders that came, went or are different now, those of `PREPARED` left out."""

    status: int | None
    out: str
    err: str
    crash: str
    changed: tuple[str, ...]

    @property
    def said(self) -> str:
        return self.crash or self.err


@functools.cache
def script(name: str) -> tuple[Command[Any], Callable[[Any], int | None]]:
    """A script's own COMMAND and run."""
    spec = importlib.util.spec_from_file_location(f"newleaf_{name}", ROOT / SCRIPTS[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with contextlib.suppress(ValueError):
        spec.loader.exec_module(module)
    return module.COMMAND, module.run


def attempt(name: str, argv: Sequence[str], folder: Path) -> Outcome:
    """Run a command in `folder`, within this process."""
    command, run = script(name)
    before, out, err = listing(folder), io.StringIO(), io.StringIO()
    status: int | None = None
    crash = ""
    argv_before, here = sys.argv, Path.cwd()
    sys.argv = [SCRIPTS[name]]
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(command, run, argv)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        crash = "".join(traceback.format_exception(error))
    finally:
        sys.argv = argv_before
        os.chdir(here)
    return Outcome(status, out.getvalue(), err.getvalue(), crash, difference(before, listing(folder)))


def attempt_process(
    name: str, argv: Sequence[str], folder: Path, *, seconds: float = 120, memory: int | None = None, **env: str
) -> Outcome:
    """Run a command in `folder` as a real process, with at most `memory` bytes of address space."""
    before = listing(folder)
    limit = ["bash", "-c", f'ulimit -v {memory // 1024}; exec "$@"', "bash"] if memory else []
    done = subprocess.run(
        [*limit, sys.executable, str(ROOT / SCRIPTS[name]), *argv],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds,
        check=False, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **env},
    )  # fmt: skip
    crash = done.stderr if "Traceback" in done.stderr or done.returncode < 0 else ""
    return Outcome(done.returncode, done.stdout, done.stderr, crash, difference(before, listing(folder)))


def listing(folder: Path) -> dict[str, str]:
    """Every path below `folder` with what it is and holds, but for the prepared corpora."""
    return {
        str(path.relative_to(folder)): held(path)
        for path in walk(folder)
        if PREPARED not in path.relative_to(folder).parts
    }


def walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path))


def held(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if not path.is_file():
        return "folder" if path.is_dir() else "special"
    if path.stat().st_size > 2**24:
        return f"{path.stat().st_size} bytes"
    return hashlib.blake2b(path.read_bytes()).hexdigest()


def difference(before: dict[str, str], after: dict[str, str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)))


def make_stock(folder: Path) -> Path:
    """Fill an empty folder: texts, a run (`run`), one with characters (`char`), an export (`model`), adapters on it
    (`lora` is their run, `adapter` a copy of its checkpoint that names `model` as its base)."""
    chance = random.Random(0)
    (folder / "book.txt").write_text(" ".join(chance.choices(WORDS, k=800)) + "\n", encoding="utf-8")
    lines = [f'{{"question": "{word} {number}?", "answer": "{word}"}}\n' for number, word in enumerate(WORDS * 4)]
    (folder / "qa.jsonl").write_text("".join(lines), encoding="utf-8")
    steps = [
        ("train", [*TRAIN, "run_dir=run"]),
        ("train", [*TRAIN, "tokenizer=char", "run_dir=char"][3:] + TEXT),
        ("export", ["checkpoint=run", "output=model"]),
        ("train", [*TEXT, *BRIEF, "init_from=model", "lora.rank=2", "experiment=null", "run_dir=lora"]),
    ]
    for name, argv in steps:
        done = attempt(
            name, [each for each in argv if each != "tokenizer=byte" or "tokenizer=char" not in argv], folder
        )
        if done.status != 0:
            raise RuntimeError(f"{name} {argv}: {done.said}")
    shutil.copytree(folder / "lora/checkpoints/best", folder / "adapter")
    shutil.rmtree(folder / "adapter/trainer")
    config = folder / "adapter/adapter_config.json"
    base = str((folder / "lora/base").resolve())
    config.write_text(config.read_text(encoding="utf-8").replace(base, "model"), encoding="utf-8")
    shutil.rmtree(folder / PREPARED)
    return folder


def copy_of(stock: Path, folder: Path) -> Path:
    """A fresh copy of the stock, as `folder`."""
    return Path(shutil.copytree(stock, folder, symlinks=True))

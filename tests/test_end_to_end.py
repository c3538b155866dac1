"""The commands as people type them: train, interrupt, kill, continue, sample, and get things wrong."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORDS = ["leaf", "branch", "root", "tree", "sun", "rain", "grows", "falls", "and", "月滿西樓"]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book, [1].txt"
    path.write_text(" ".join(random.Random(0).choices(WORDS, k=3000)), encoding="utf-8")
    return path


def command(script: str, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / script), *options]


def run(script: str, *options: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(script, *options), cwd=cwd, input=stdin, capture_output=True, encoding="utf-8", timeout=120, check=False
    )


def options(book: Path, run_dir: str, **changes: object) -> list[str]:
    """A run of 30 tiny steps; `train__eval_every=5` changes train.eval_every."""
    chosen: dict[str, object] = {
        "data": "text", "data.files": f"[{book}]", "data.prepared_dir": book.parent / "prepared", "run_dir": run_dir,
        "tokenizer": "char", "model.n_layer": 2, "model.n_head": 2, "model.n_embd": 32, "model.context_length": 16,
        "train.max_steps": 30, "train.batch_size": 2, "train.eval_every": 10, "train.checkpoint_every": 7,
        "train.eval_tokens": 100, "train.sample_tokens": 5, "train.log_every": 1, "train.device": "cpu",
    }  # fmt: skip
    chosen |= {name.replace("__", "."): value for name, value in changes.items()}
    return [f"{name}={value}" for name, value in chosen.items()]


def weights(folder: Path) -> bytes:
    return (folder / "checkpoints/step-00000030/model.safetensors").read_bytes()


LOADED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(*(name for name in sys.modules if "." not in name or name.startswith("torch.")))
"""


def loaded(script: str, *options: str, cwd: Path) -> set[str]:
    """The modules (of packages other than torch, the package only) that a script has loaded when it ends."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", LOADED, str(ROOT / script), *options]
    done = subprocess.run(
        arguments, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_scripts_load_only_what_they_need(book: Path, tmp_path: Path) -> None:
    never = {"datasets", "pyarrow", "pandas", "transformers", "wandb", "sacrebleu", "nltk", "requests", "sympy"}
    slow = {"torch", "numpy", "hydra", "tokenizers", "tiktoken", "matplotlib", "rich"}
    for script in ("train.py", "sample.py", "evaluate.py", "export.py"):
        assert not loaded(script, "--help", cwd=tmp_path) & (never | slow)
    whole = loaded("train.py", *options(book, "run", optimizer="muon"), cwd=tmp_path)
    assert {"torch", "matplotlib"} < whole
    assert not whole & (never | {"torch._dynamo", "torch._inductor", "torch.distributed.tensor"})
    assert (tmp_path / "run/loss.png").is_file()


def test_train_then_sample(book: Path, tmp_path: Path) -> None:
    trained = run("train.py", *options(book, "my run"), cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout == ""
    assert "gzip -9" in trained.stderr
    assert {path.name for path in tmp_path.iterdir()} == {book.name, "my run", "prepared"}
    again = run("train.py", *options(book, "my run"), cwd=tmp_path)
    assert again.returncode == 0
    assert "is complete: 30 steps done, train.max_steps=30" in again.stderr

    def sample(*more: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = run("sample.py", "checkpoint=my run", "max_new_tokens=40", *more, cwd=tmp_path, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done

    streamed = sample("prompt=月滿西樓")
    assert streamed.stdout.startswith("月滿西樓")
    assert 4 + 1 < len(streamed.stdout) <= 4 + 40 + 1  # a character a token, less where the text ends by itself
    assert sample("prompt=月滿西樓", "stream=false").stdout == streamed.stdout
    eight = sample("prompt=月滿西樓", "num_samples=8").stdout.split("---\n")
    assert len(set(eight)) == 8
    assert eight[0] == streamed.stdout
    typed = sample("interactive=true", stdin="月滿西樓\nleaf\n").stdout
    assert typed.startswith(streamed.stdout + "leaf")
    (tmp_path / "prompts.txt").write_text("leaf\n月滿西樓\n", encoding="utf-8")
    sample("prompt_file=prompts.txt", "num_samples=2", "output=made.jsonl", "stop= ")
    made = [json.loads(line) for line in (tmp_path / "made.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["prompt"], line["sample"]) for line in made] == [(p, i) for p in ("leaf", "月滿西樓") for i in (0, 1)]
    assert not any(" " in line["text"] for line in made)
    if os.name == "posix":
        (tmp_path / "link.jsonl").symlink_to("made.jsonl")
        for output in ("/dev/stdout", "link.jsonl"):
            written = sample("prompt=leaf", f"output={output}").stdout
            assert bool(written) == (output == "/dev/stdout")
        assert (tmp_path / "link.jsonl").is_symlink()
        assert len((tmp_path / "made.jsonl").read_text(encoding="utf-8").splitlines()) == 1


SLOW = {"train__grad_accum_steps": 12}  # so that a signal after some step finds the run alive


def start(book: Path, run_dir: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("train.py", *options(book, run_dir, **SLOW)),
        cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, encoding="utf-8",
    )  # fmt: skip


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    """Until this step or a later one is done: a run that was killed late continues behind it."""
    assert process.stderr is not None
    for line in process.stderr:
        if (done := re.match(r"step +(\d+)  loss", line)) and int(done[1]) >= step:
            return
    raise AssertionError(f"step {step} never came")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_saves_and_continues(number: int, status: int, book: Path, tmp_path: Path) -> None:
    process = start(book, "stopped", tmp_path)
    wait_for_step(process, 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "The same command continues." in errors
    assert "Traceback" not in errors
    assert list((tmp_path / "stopped/checkpoints").glob("step-*"))
    for name in ("stopped", "straight"):
        assert run("train.py", *options(book, name, **SLOW), cwd=tmp_path).returncode == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "straight")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("signalled", "status"), [(True, 130), (False, 141)])
def test_a_run_whose_log_has_no_reader_any_more_saves(signalled: bool, status: int, book: Path, tmp_path: Path) -> None:
    """As under `2>&1 | tee log`: the terminal's Ctrl-C also ends the tee."""
    process = start(book, "unread", tmp_path)
    wait_for_step(process, 3)
    process.send_signal(signal.SIGSTOP)
    assert process.stderr is not None
    process.stderr.close()
    if signalled:
        process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=60) == status
    *_, last = (json.loads(line)["step"] for line in (tmp_path / "unread/metrics.jsonl").open())
    assert 3 <= last < 30
    assert (tmp_path / f"unread/checkpoints/step-{last:08}").is_dir()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_kill_9_at_five_moments_gives_the_same_weights(book: Path, tmp_path: Path) -> None:
    assert run("train.py", *options(book, "straight", **SLOW), cwd=tmp_path).returncode == 0
    chance = random.Random(1)
    for step in (2, 9, 15, 20, 27):  # checkpoints are at 7, 10, 14, 20, 21, 28 and 30
        process = start(book, "killed", tmp_path)
        wait_for_step(process, step)
        time.sleep(chance.uniform(0, 0.01))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    done = run("train.py", *options(book, "killed", **SLOW), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "killed") == weights(tmp_path / "straight")


def test_a_run_folder_in_use_is_refused(book: Path, tmp_path: Path) -> None:
    process = start(book, "busy", tmp_path)
    wait_for_step(process, 1)
    process.send_signal(signal.SIGSTOP)
    try:
        second = run("train.py", *options(book, "busy"), cwd=tmp_path)
    finally:
        process.kill()
        process.communicate()
    assert second.returncode == 2
    assert "run_dir=busy is in use by another process" in second.stderr


BAD_TRAINING = {
    "an empty file": (["data.files=[empty.txt]"], "empty.txt"),
    "a binary file": (["data.files=[binary.txt]"], "binary.txt"),
    "a missing path": (["data.files=[nowhere.txt]"], "nowhere.txt"),
    "too little text": (["data.files=[short.txt]"], "shorter than one context"),
    "an unknown option": (["train.lerning_rate=1"], "train.lerning_rate"),
    "an unknown choice": (["model=minni"], "did you mean model=mini"),
    "a wrong type": (["train.max_steps=many"], "train.max_steps=many"),
    "no head fits": (["model.n_embd=33"], "model.n_embd=33"),
    "a file as run_dir": (["run_dir=short.txt"], "run_dir=short.txt"),
    "a prompt that cannot be encoded": (["train.sample_prompt=☃"], "☃"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_input_to_train(case: str, book: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "short.txt").write_text("short")
    bad, message = BAD_TRAINING[case]
    names = {option.partition("=")[0] for option in bad}
    usual = [option for option in options(book, "run") if option.partition("=")[0] not in names]
    done = run("train.py", *usual, *bad, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


BAD_SAMPLING = {
    "no checkpoint": ([], "checkpoint"),
    "a missing checkpoint": (["checkpoint=nowhere"], "checkpoint=nowhere"),
    "a folder that is none": (["checkpoint=folder"], "checkpoint=folder"),
    "a file": (["checkpoint=file"], "checkpoint=file"),
    "a negative temperature": (["checkpoint=folder", "temperature=-1"], "temperature=-1"),
    "a missing prompt file": (["checkpoint=folder", "prompt_file=none.txt"], "prompt_file=none.txt"),
    "two kinds of prompts": (["checkpoint=folder", "prompt=x", "prompt_file=file"], "prompt or prompt_file"),
}


@pytest.mark.parametrize("case", BAD_SAMPLING)
def test_bad_input_to_sample(case: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    bad, message = BAD_SAMPLING[case]
    done = run("sample.py", *bad, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""

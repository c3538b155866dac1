"""The door: what each command line means, and what each wrong one says. Expected values are written out by hand."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt.arguments import choices_of, leaves
from gpt.cli import Command, main
from gpt.composition import load_config
from gpt.config import RunConfig, SampleConfig
from gpt.help import default_values, help_text
from gpt.options import ConfigError, UserError, look_up
from tests.scripts import ROOT, SAMPLE, TRAIN, empty_folder, run_script

__all__ = ["empty_folder"]  # a fixture


def train(*argv: str) -> RunConfig:
    return load_config(TRAIN, argv)


def sample(*argv: str) -> SampleConfig:
    return load_config(SAMPLE, ["checkpoint=x", *argv])


def mistakes(*argv: str, command: Command = TRAIN) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(command, argv)
    return [str(mistake) for mistake in caught.value.mistakes]


def test_no_arguments_give_the_defaults(empty_folder: Path) -> None:
    assert train() == RunConfig(run_dir="runs/stdlib-mini")
    assert sample() == SampleConfig(checkpoint="x")
    assert os.getcwd() == str(empty_folder)
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("model=gpt2-medium", {"model.n_layer": 24, "run_dir": "runs/stdlib-gpt2-medium"}),
        ("data=shakespeare", {"data.name": "shakespeare", "run_dir": "runs/shakespeare-mini"}),
        ("tokenizer=char", {"tokenizer.name": "char"}),
        ("optimizer=adamw", {"optimizer.name": "adamw", "optimizer.lr": 3e-3}),
        ("schedule=wsd", {"schedule.name": "wsd"}),
        ("model.n_layer=8", {"model.n_layer": 8}),
        ("model.n_kv_head=2", {"model.n_kv_head": 2}),
        ("model.n_kv_head=null", {"model.n_kv_head": None}),
        ("train.max_steps=1e4", {"train.max_steps": 10000}),
        ("train.max_steps=1_000", {"train.max_steps": 1000}),
        ("seed=9223372036854775807", {"seed": 2**63 - 1}),
        ("optimizer.lr=3e-4", {"optimizer.lr": 3e-4}),
        ("train.grad_clip=1", {"train.grad_clip": 1.0}),
        ("train.compile=on", {"train.compile": "on"}),
        ("train.compile=off", {"train.compile": "off"}),
        ("train.deterministic=yes", {"train.deterministic": True}),
        ("train.deterministic=ON", {"train.deterministic": True}),
        ("train.deterministic=False", {"train.deterministic": False}),
        ("model.tie_embeddings=no", {"model.tie_embeddings": False}),
        ("train.device=cuda:1", {"train.device": "cuda:1"}),
        ("train.eval_every=${train.log_every}", {"train.eval_every": 10}),
        ("run_dir=runs/my run, 2", {"run_dir": "runs/my run, 2"}),
        ("run_dir=", {"run_dir": "runs/stdlib-mini"}),
        ("wandb.project=null", {"wandb.project": "null"}),
        (r"train.sample_prompt=a\nb\\n\d", {"train.sample_prompt": "a\nb\\n\\d"}),
    ],
)
def test_what_an_argument_means(argument: str, expected: dict[str, Any]) -> None:
    config = train(argument)
    for name, value in expected.items():
        found = look_up(config, name)
        assert found == value
        assert type(found) is type(value)


def test_the_same_argument_twice_is_no_mistake() -> None:
    assert train("seed=1", "seed=1").seed == 1


def test_an_experiment_yields_to_the_command_line() -> None:
    plain = train("experiment=shakespeare_char_cpu")
    assert (plain.data.name, plain.tokenizer.name, plain.run_dir) == ("shakespeare", "char", "runs/shakespeare-mini")
    assert (plain.model.n_layer, plain.model.n_embd, plain.train.max_steps) == (3, 128, 140)
    own = train(
        "data=text", "data.files=[x]", "experiment=shakespeare_char_cpu", "tokenizer=byte", "train.max_steps=60"
    )
    assert (own.data.name, own.data.files, own.tokenizer.name) == ("text", ("x",), "byte")
    assert (own.model.n_layer, own.train.max_steps, own.run_dir) == (3, 60, "runs/text-mini")


@pytest.mark.parametrize("group", ["model", "tokenizer", "optimizer", "schedule", "experiment"])
def test_every_file_in_configs_composes(group: str) -> None:
    for choice in choices_of(group):
        needed = {"huggingface": ["tokenizer.path=x"], "lora": ["init_from=gpt2"]}
        train(f"{group}={choice}", *needed.get(choice, []))


AWKWARD = [
    "月滿西樓，今夜",
    "f(x): {a, b}",
    "${oops}",
    "it's",
    'say "hi"',
    "a=b",
    "",
    "null",
    "true",
    "1e4",
    "[a,b]",
    "a\\nb",
    "new\nline",
    "~ + -h --help",
    "😀 \t ",
    "\\",
    "???",
    "a,b",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_free_text_is_verbatim(text: str) -> None:
    assert sample(f"prompt={text}").prompt == text
    assert train(f"wandb.project={text}").wandb.project == text


@pytest.mark.parametrize("text", AWKWARD)
def test_a_stop_text_is_one_item_with_escapes(text: str) -> None:
    if text:
        assert sample(f"stop={text}", "stop=END").stop == (text.replace("\\n", "\n"), "END")


def test_null_means_none_for_optional_names_only() -> None:
    config = sample("prompt_file=null", "output=null", "prompt=null")
    assert (config.prompt_file, config.output, config.prompt) == (None, None, "null")


def test_templates() -> None:
    config = train("data=jsonl", "data.files=[詩集.txt]", r"data.template={title}\n{author}\n{text}")
    assert config.data.template == "{title}\n{author}\n{text}"
    assert config.data.files == ("詩集.txt",)
    config = train("data=huggingface", "data.path=a/b", "data.subset=2024", "data.column=null")
    assert (config.data.subset, config.data.path, config.data.column) == ("2024", "a/b", None)


@pytest.mark.parametrize(
    ("values", "existing", "expected"),
    [
        (["[a.txt,notes/**/*.md]"], [], ("a.txt", "notes/**/*.md")),
        (["[ a.txt , b.txt ]"], [], ("a.txt", "b.txt")),
        (["[ a.txt, b.txt]"], [" a.txt"], (" a.txt", "b.txt")),
        (["a.txt"], [], ("a.txt",)),
        (["a,b.txt"], [], ("a,b.txt",)),
        (["[a,b.txt]"], ["a,b.txt"], ("a,b.txt",)),
        (["[a,b.txt]"], ["a", "b.txt"], ("a", "b.txt")),
        (["[x,a,b,c.txt,y]"], ["a,b,c.txt", "a"], ("x", "a,b,c.txt", "y")),
        (["[x, a, b.txt]"], ["a, b.txt"], ("x", "a, b.txt")),
        (["['a.txt',\"b.txt\"]"], [], ("a.txt", "b.txt")),
        (["['a,b.txt',c]"], [], ("a,b.txt", "c")),
        (["['a.txt']"], ["'a.txt'"], ("'a.txt'",)),
        (["['tis.txt,b]"], [], ("'tis.txt", "b")),
        (["[it's,b]"], [], ("it's", "b")),
        (["[draft].txt"], [], ("[draft].txt",)),
        (["[[draft].txt]"], [], ("[draft].txt",)),
        (["[a]"], ["[a]"], ("[a]",)),
        (["[notes/[ab].md,c]"], [], ("notes/[ab].md", "c")),
        (["[a.txt,]"], [], ("a.txt",)),
        (["[a.txt]", "b.txt", "[c,d]"], [], ("a.txt", "b.txt", "c", "d")),
        (["[${x}.txt,{y}=z]"], [], ("${x}.txt", "{y}=z")),
    ],
)
def test_lists_of_files(values: list[str], existing: list[str], expected: tuple[str, ...], empty_folder: Path) -> None:
    for name in existing:
        (empty_folder / name).write_text("")
    assert train("data=text", *(f"data.files={value}" for value in values)).data.files == expected


def test_an_empty_list_of_files() -> None:
    assert train("data.files=").data.files == train("data.files=[]").data.files == ()


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("lr=3e-4", "lr=3e-4: there is no such option; did you mean optimizer.lr?"),
        ("train.lr=1", "train.lr=1: there is no such option; did you mean optimizer.lr?"),
        ("batch_size=8", "batch_size=8: there is no such option; did you mean train.batch_size?"),
        ("modle=gpt2", "modle=gpt2: there is no such option; did you mean model or wandb.mode?"),
        ("warmup=5", "warmup=5: there is no such option; did you mean schedule.warmup_steps?"),
        ("qqq=1", "qqq=1: there is no such option"),
        ("=1", "=1: there is no such option"),
        ("hydra.run.dir=x", "hydra.run.dir=x: there is no such option"),
        ("seed", "seed: options are written name=value; did you mean seed=value?"),
        ("upon", "upon: options are written name=value, and values that contain blanks in quotes"),
        ("--max_steps=5", "--max_steps=5: there is no such flag; options are written name=value, as train.max_steps=5"),
        ("--max-steps", "--max-steps: there is no such flag; options are written name=value, as train.max_steps=value"),
        ("-x", "-x: there is no such flag; options are written name=value, as x=value"),
        ("+seed=3", "+seed=3: options are written name=value, without +, as seed=3"),
        ("++seed=3", "++seed=3: options are written name=value, without +, as seed=3"),
        ("~seed", "~seed: options are written name=value, without ~, as seed=value"),
        ("train=5", "train=5: is a group of options; set one of them, as train.max_steps=value"),
        ("data.name=text", "data.name=text: is chosen as data=text"),
        (
            "data=txt",
            "data=txt: is not one of huggingface, jsonl, pairs, shakespeare, stdlib, text; did you mean data=text?",
        ),
        ("optimizer=", "optimizer=: is not one of adamw, muon"),
        ("optimizer={", "optimizer={: is not one of adamw, muon"),
        ("train.max_steps=three", "train.max_steps=three: is not a whole number"),
        ("train.max_steps=2.5", "train.max_steps=2.5: is not a whole number"),
        ("train.max_steps=", "train.max_steps=: is not a whole number"),
        ("train.max_steps=null", "train.max_steps=null: is not a whole number"),
        ("train.max_steps=[1,2]", "train.max_steps=[1,2]: is not a whole number"),
        ("train.max_steps={a:1}", "train.max_steps={'a': 1}: is not a whole number"),
        ("train.max_steps={a", "train.max_steps={a: is not a whole number"),
        ("train.max_steps=f(x", "train.max_steps=f(x: is not a whole number"),
        ("train.max_steps='5", "train.max_steps='5: is not a whole number"),
        ("train.max_steps=a=b", "train.max_steps=a=b: is not a whole number"),
        (
            "train.max_steps=${oops}",
            "train.max_steps=${oops}: refers to something that is not there; write the value itself",
        ),
        ("train.max_steps=${oops", "train.max_steps=${oops: is not a whole number"),
        ("train.max_steps=0", "train.max_steps=0: must be at least 1"),
        ("train.max_steps=inf", "train.max_steps=inf: is not a whole number"),
        ("optimizer.lr=true", "optimizer.lr=true: is not a number"),
        ("optimizer.lr=nan", "optimizer.lr=nan: is not a finite number"),
        ("optimizer.lr=0", "optimizer.lr=0: must be greater than 0"),
        ("model.dropout=1", "model.dropout=1: must be less than 1"),
        ("train.deterministic=2", "train.deterministic=2: is not true or false"),
        ("train.compile=maybe", "train.compile=maybe: is not one of auto, on, off"),
        ("train.compile=5", "train.compile=5: is not one of auto, on, off"),
        ("train.device=gpu", "train.device=gpu: is not one of auto, cpu, cuda, cuda:N, mps"),
        ("train.device=0", "train.device=0: is not one of auto, cpu, cuda, cuda:N, mps"),
        (
            "optimizer.lr=3e-4,1e-3",
            "optimizer.lr=3e-4,1e-3: is several values; give one, or add --multirun to run them all",
        ),
        (
            "optimizer=adamw,muon",
            "optimizer=adamw,muon: is several values; give one, or add --multirun to run them all",
        ),
        ("model.n_embd=250", "model.n_embd=250: must be a multiple of n_head=4"),
        ("data=text", "data.files=[]: data=text needs data.files, as data.files='[book.txt,notes/**/*.md]'"),
        (
            "wandb.project=\udcff",
            "wandb.project=\\udcff: is not valid UTF-8; type it in a terminal that is set to UTF-8",
        ),
    ],
)
def test_what_a_mistake_says(argument: str, expected: str) -> None:
    assert mistakes(argument) == [expected]


def test_one_option_with_two_values() -> None:
    assert mistakes("seed=1", "seed=2") == ["seed=2: was also given as seed=1; give it once"]
    assert mistakes("data=text", "data=stdlib") == ["data=stdlib: was also given as data=text; give it once"]
    assert len(mistakes("data=text,jsonl", "data.files=[x]")) == 1


def test_all_mistakes_at_once() -> None:
    found = mistakes(
        "lr=1", "hello", "--flag", "data=txt", "model.n_layer=two", "optimizer.lr=-1", "train.compile=(",
        "tokenizer=bpe", "tokenizer.path=x", "seed=1", "seed=2", "train.eval_every=${x}", "schedule.warmup_steps=1,2",
    )  # fmt: skip
    assert [text.partition(":")[0] for text in found] == [
        "lr=1", "hello", "--flag", "seed=2", "schedule.warmup_steps=1,2", "data=txt", "train.eval_every=${x}",
        "model.n_layer=two", "tokenizer.path=x", "optimizer.lr=-1", "train.compile=(",
    ]  # fmt: skip


def test_quantize_and_what_does_not_go_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert sample("quantize=int4").quantize == "int4"
    assert main(SAMPLE, lambda config: 0, ["checkpoint=x", "quantize=int9"]) == 2
    assert "quantize=int9: is not one of none, int8, int4" in capsys.readouterr().err
    (mistake,) = mistakes("checkpoint=x", "quantize=int8", "precision=bf16", command=SAMPLE)
    assert mistake.startswith("quantize=int8: computes all else in fp32; leave out precision=bf16")


def test_a_mistake_does_not_cause_another() -> None:
    # With data=txt or a mistyped option of the group, whether data.files is right cannot be said.
    assert len(mistakes("data=txt", "data.files=[x]")) == 1
    assert len(mistakes("data=text", "data.fils=[x]")) == 1
    assert len(mistakes("experiment=nothing", "data.files=[x]")) == 1
    assert len(mistakes("promt=x", "checkpont=x", command=SAMPLE)) == 2
    assert mistakes(command=SAMPLE)[0].startswith("checkpoint=: is missing")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {max_step: 5}", "train.max_step=5: there is no such option; did you mean max_steps?"),
        ("trian: {max_steps: 5}", "trian={'max_steps': 5}: there is no such option; did you mean train?"),
        ("train: 5", "train=5: is a group of options, not one value"),
        ("train: {max_steps: many}", "train.max_steps=many: is not a whole number"),
        ("data: {files: [1]}", "data.files=[1]: is not a list of texts"),
        ("run_dir: ${oops}", "run_dir=${oops}: refers to something that is not there; write the value itself"),
        ("train: {", "the configuration files do not fit together"),
        ("defaults: [{override /model: none}]", "the configuration files do not fit together"),
        ("train: {compile: off, max_steps: 1e3}\noptimizer: {lr: 3e-4}", ""),
    ],
)
def test_mistakes_in_a_file_of_configs(text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    monkeypatch.setattr("gpt.arguments.CONFIGS", tmp_path / "configs")
    monkeypatch.setattr("gpt.composition.CONFIGS", tmp_path / "configs")
    if words:
        with pytest.raises(UserError) as caught:
            train("experiment=mine")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        config = train("experiment=mine")
        assert (config.train.compile, config.train.max_steps, config.optimizer.lr) == ("off", 1000, 3e-4)


def test_help_lists_every_option_and_choice() -> None:
    for command in (TRAIN, SAMPLE):
        text = help_text(command, "x.py", 100)
        for leaf in leaves(command.kind):
            group = leaf.name.removesuffix(".name")
            assert f"\n  {leaf.name}=" in text or (group in command.groups() and f"\n  {group}=" in text)
        assert all(len(line) <= 100 for line in text.splitlines())
    text = help_text(TRAIN, "train.py", 100)
    for group in TRAIN.groups():
        assert all(choice in text for choice in choices_of(group))
    for words in ("optimizer.lr=0.015", "run_dir=", "data=stdlib", "at least 1", "sequences", "--multirun", "train.py"):
        assert words in text
    assert "--multirun" not in help_text(SAMPLE, "sample.py", 100)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_is_wrapped(width: int) -> None:
    assert all(len(line) <= width for line in help_text(TRAIN, "train.py", width).splitlines())


def test_help_may_list_some_groups_only() -> None:
    text = help_text(Command(RunConfig, "train", "Prepare.", listed=("data", "tokenizer")), "prepare.py", 100)
    assert "data.files" in text
    assert "tokenizer=bpe" in text
    assert "optimizer" not in text
    assert "seed=" not in text


@pytest.mark.parametrize("command", [TRAIN, SAMPLE])
def test_help_shows_the_defaults_that_hydra_composes(command: Command) -> None:
    config = train() if command is TRAIN else sample()
    values = default_values(command)
    for leaf in leaves(command.kind):
        if leaf.name not in ("run_dir", "checkpoint"):
            group, _, last = leaf.name.rpartition(".")
            shown = (values[group] if group else values)[last]
            found = look_up(config, leaf.name)
            assert shown == (list(found) if isinstance(found, tuple) else found)


def fail(error: BaseException) -> Callable[[Any], int]:
    def run(config: Any) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (UserError("no such thing"), 2, "no such thing"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x/a"), 1, "runs/x/a: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/mine/a"), 2, "runs/mine/a: Permission denied"),
        (PermissionError(errno.EACCES, "Permission denied", "/other"), 1, "/other: Permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file", "runs/mine/a"), 2, "runs/mine/a: No such file"),
    ],
)
def test_errors_of_a_run(error: BaseException, status: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TRAIN, fail(error), ["run_dir=runs/mine"]) == status
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_disk_that_is_full_when_ctrl_c_comes_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Any) -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise OSError(errno.ENOSPC, "No space left on device", "runs/x/a") from None

    assert main(TRAIN, run, []) == 1
    assert "runs/x/a: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [ImportError("initialization failed"), AttributeError("half a module"), UserError("x")])
def test_a_library_interrupted_while_it_is_loaded_is_no_bug(cut: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Any) -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise cut from interrupt

    assert main(TRAIN, run, []) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "error", [ValueError("bug"), FileNotFoundError(errno.ENOENT, "No such file", "/other"), OSError()]
)
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        main(TRAIN, fail(error), ["run_dir=runs/mine"])


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (3, 3)])
def test_the_status_of_a_run(result: int | None, status: int) -> None:
    assert main(TRAIN, lambda config: result, []) == status


def test_only_the_first_rank_lists_mistakes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(TRAIN, lambda config: 0, ["x=1"]) == 2
    assert capsys.readouterr().err == ""


def test_help_of_a_script_loads_neither_torch_nor_hydra(empty_folder: Path) -> None:
    for flag in ("--help", "-h"):
        done = run_script(empty_folder, "pass", ["lr=1", flag])
        assert done.returncode == 0
        assert done.stderr == ""
        assert done.stdout.startswith("usage: python script.py")
    code = """
import sys
from gpt.cli import Command, main
from gpt.config import RunConfig
main(Command(RunConfig, "train", ""), print, ["-h"])
print([name for name in ("torch", "hydra", "omegaconf") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("\n[]\n")
    assert done.stderr == ""


def test_a_composed_configuration_loads_no_torch(empty_folder: Path) -> None:
    done = run_script(empty_folder, "print('torch' in sys.modules, config.run_dir)", ["optimizer.lr=1e-4"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "False runs/stdlib-mini\n", "")
    assert [path.name for path in empty_folder.iterdir()] == ["script.py"]


def test_mistakes_of_a_script(empty_folder: Path) -> None:
    done = run_script(empty_folder, "print('ran')", ["lr=3e-4", "seed=x"])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "2 mistakes in the options:\n"
        "  lr=3e-4: there is no such option; did you mean optimizer.lr?\n"
        "  seed=x: is not a whole number\n"
        "python script.py --help lists every option.\n"
    )


def test_free_text_reaches_a_script(empty_folder: Path) -> None:
    text = '月滿西樓，${x} {a, b} it\'s "="'
    body = "sys.stdout.reconfigure(encoding='utf-8'); print(config.prompt)"
    done = run_script(empty_folder, body, ["checkpoint=x", f"prompt={text}"], "SampleConfig")
    assert (done.returncode, done.stdout) == (0, text + "\n")


def test_a_bug_in_a_script_shows_its_traceback(empty_folder: Path) -> None:
    done = run_script(empty_folder, "raise ValueError('bug')", [])
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_reader_that_goes_away_is_no_error(empty_folder: Path) -> None:
    body = "for i in range(100000): print(i)"
    done = run_script(empty_folder, body, [], pipe="head -n 1")
    assert (done.returncode, done.stdout, done.stderr) == (141, "0\n", "")


def test_after_ctrl_c_no_thread_is_waited_for(empty_folder: Path) -> None:
    body = "import threading, time; threading.Thread(target=time.sleep, args=(200,)).start(); raise KeyboardInterrupt"
    done = run_script(empty_folder, body, [])
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_full_disk_is_one_line(empty_folder: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    done = run_script(empty_folder, "print('x', file=open('/dev/full', 'w'), flush=True)", [])
    assert done.returncode == 1
    assert done.stderr == "script.py: No space left on device\n"

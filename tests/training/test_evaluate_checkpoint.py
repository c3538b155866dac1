"""`evaluate.py` against a run's own figures, against transformers on the same folder, and against wrong input."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from transformers import AutoModelForCausalLM

import gpt.inference.decode as decode_module
import gpt.training.evaluate_checkpoint as evaluate_module
from evaluate import COMMAND
from evaluate import run as evaluate_
from gpt.cli import main
from gpt.config import DataConfig, EvaluateConfig, LoRAConfig, ModelConfig, RunConfig, TokenizerConfig
from gpt.inference.beam import beam_search
from gpt.model.adapters import save_adapters
from gpt.model.huggingface import load_model, save_model
from gpt.model.lora import add_adapters
from gpt.model.transformer import Decoder
from gpt.options import UserError, defaults, from_dict, to_dict
from gpt.text.streams import PairStream
from gpt.text.tokenizers import Tokenizer
from gpt.text.vocabularies import build_tokenizer
from gpt.training.checkpoints import TrainerState, write_state, write_trainer
from gpt.training.evaluate_checkpoint import adopt_data, output_folder, without_nan
from gpt.training.run import train

from .conftest import MakeConfig

CONTEXT, END = 16, 256  # of the tiny model: tokens of context; the end of text, after 256 bytes
PAIRS = [
    ("the sun", " and the rain"),
    ("a leaf of a tree that", " falls"),
    ("", "葉 grows"),
    ("rain", " and rain"),
    ("sun and rain and sun and", " rain"),
]


def save_random(folder: Path, vocab_size: int = END + 1, **kind: Any) -> Path:
    """A byte model that has learned nothing, with weights large enough that it is sure of what it says."""
    torch.manual_seed(0)
    model = Decoder(ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=CONTEXT, **kind), vocab_size)
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        model.embed.weight[:vocab_size].normal_(std=0.3)
    folder.mkdir(parents=True)
    save_model(model, folder, END)
    build_tokenizer(TokenizerConfig(name="byte")).save(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_random(tmp_path / "models" / "random")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "held out, [1].txt"
    path.write_text("A leaf falls, and a branch grows.\n月滿西樓 over the tree.\n", encoding="utf-8")
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"question": prompt, "answer": completion}) for prompt, completion in PAIRS]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Types `python evaluate.py …` in an empty folder; the object that it prints."""
    monkeypatch.chdir(tmp_path)

    def typed(*options: str, says: str = "") -> dict[str, Any]:
        usual = ["device=cpu", "precision=fp32", f"data.prepared_dir={tmp_path / 'prepared again'}"]
        status = main(COMMAND, evaluate_, [*usual, *options])
        out, err = capsys.readouterr()
        assert status == 0, err
        assert says in err
        assert ("has changed since" in err) == ("has changed since" in says)
        return json.loads(out)

    return typed


def of_text(path: Path) -> list[str]:
    return ["data=text", f"data.files={path}"]


def of_pairs(path: Path) -> list[str]:
    return ["data=pairs", f"data.files={path}", "data.prompt={question}", "data.completion={answer}"]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def reference_loss(folder: Path, windows: list[tuple[list[int], int]]) -> tuple[float, int]:
    """By transformers, one window after another: mean negative log-likelihood (nats) and number of tokens.

    A window is tokens and the index of the first of them that counts.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    total, count = 0.0, 0
    for tokens, first in windows:
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0].double()
        for place in range(first, len(tokens)):
            total -= logits[place - 1].log_softmax(0)[tokens[place]].item()
            count += 1
    return total / count, count


def test_it_is_the_val_loss_of_the_run(make_config: MakeConfig, evaluate: Any, tmp_path: Path) -> None:
    config = make_config(train={"eval_tokens": None})
    assert train(config) == 0
    before = {path for path in tmp_path.rglob("*") if "prepared" not in str(path)}
    found = evaluate(f"checkpoint={config.run_dir}")
    logged = [line for line in lines_of(Path(config.run_dir) / "metrics.jsonl") if "val/loss" in line]
    best = min(logged, key=lambda line: line["val/loss"])
    assert found["loss"] == pytest.approx(best["val/loss"], rel=1e-7)
    assert found["bits_per_byte"] == pytest.approx(best["val/bits_per_byte"], rel=1e-7)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["checkpoint"] == str((Path(config.run_dir) / "checkpoints/best").resolve())
    assert found["data"] == "40 files, held-out part"
    last = evaluate(f"checkpoint={config.run_dir}/checkpoints/step-00000012", "batch_size=3")
    assert last["loss"] == pytest.approx(logged[-1]["val/loss"], rel=1e-6)
    everything = evaluate(f"checkpoint={config.run_dir}", "part=all")
    assert everything["tokens"] > 5 * found["tokens"]
    first = evaluate(f"checkpoint={config.run_dir}", "max_tokens=50")
    assert first["tokens"] == 50
    assert {path for path in tmp_path.rglob("*") if "prepared" not in str(path)} == before
    (Path(config.data.files[0]) / "0.txt").write_text("Another leaf.")
    evaluate(f"checkpoint={config.run_dir}", says="the text has changed since the training")


@pytest.mark.parametrize("stride", [None, 5, 16])
def test_text_against_transformers(folder: Path, text: Path, evaluate: Any, stride: int | None) -> None:
    found = evaluate(f"checkpoint={folder}", *of_text(text), f"stride={stride or 'null'}", "batch_size=3")
    tokens = [END, *text.read_bytes(), END]
    step = stride or CONTEXT
    windows = [(tokens[: CONTEXT + 1], 1)]
    for start in range(step, len(tokens) - 1 - (CONTEXT - step), step):
        windows.append((tokens[start : start + CONTEXT + 1], 1 + CONTEXT - step))
    loss, count = reference_loss(folder, windows)
    assert count == len(tokens) - 1
    n_bytes = len(text.read_bytes())
    assert found == {
        "checkpoint": str(folder),
        "data": text.name,
        "context": CONTEXT,
        "stride": stride,
        "tokens": count,
        "bytes": n_bytes,
        "loss": pytest.approx(loss, rel=1e-5),
        "perplexity": pytest.approx(math.exp(loss), rel=1e-4),
        "bits_per_byte": pytest.approx(loss * count / math.log(2) / n_bytes, rel=1e-5),
    }


def test_a_quantised_model_is_scored_as_it_decodes(folder: Path, text: Path, pairs: Path, evaluate: Any) -> None:
    whole = evaluate(f"checkpoint={folder}", *of_text(text))
    found = evaluate(f"checkpoint={folder}", *of_text(text), "quantize=int8", says="fp32, attention by sdpa")
    assert found.pop("quantize") == "int8"
    assert found != whole
    assert found["loss"] == pytest.approx(whole["loss"], rel=1e-2)
    assert evaluate(f"checkpoint={folder}", *of_pairs(pairs), "quantize=int8", says="weights int8")["generated"]


def test_pairs_against_transformers(folder: Path, pairs: Path, evaluate: Any, tmp_path: Path) -> None:
    found = evaluate(f"checkpoint={folder}", *of_pairs(pairs), "max_new_tokens=9", "batch_size=2")
    windows = []
    for prompt, completion in PAIRS:
        ids = [*prompt.encode()] or [END]
        windows.append(([*ids, *completion.encode(), END][: CONTEXT + 1], len(ids)))
    loss, count = reference_loss(folder, [window for window in windows if window[1] <= CONTEXT])
    assert (found["loss"], found["tokens"]) == (pytest.approx(loss, rel=1e-5), count)
    assert (found["pairs"], found["generated"]) == (5, 5)
    output = tmp_path / "evaluations" / "models--random"
    assert found["generations"] == str(Path("evaluations") / "models--random" / "generations.jsonl")
    assert [path.name for path in sorted(output.iterdir())] == ["generations.jsonl", "scores.json"]
    assert lines_of(output / "scores.json") == [found]

    made = lines_of(output / "generations.jsonl")
    assert [(line["prompt"], line["reference"]) for line in made] == PAIRS
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for line, (prompt, _) in zip(made, PAIRS, strict=True):
        ids = [*prompt.encode()] or [END]
        if len(ids) + 9 > CONTEXT:  # beyond its context transformers does something else
            continue
        expected = model.generate(torch.tensor([ids]), max_new_tokens=9, do_sample=False, pad_token_id=END)
        said = expected[0, len(ids) :].tolist()
        assert line["ended"] == ("end_of_text" if END in said else "length")
        assert line["prediction"] == bytes(each for each in said if each != END).decode(errors="replace")
    assert len({line["prediction"] for line in made}) > 1

    said, meant = [line["prediction"] for line in made], [line["reference"] for line in made]
    assert found["scores"]["chrf"] == sacrebleu.corpus_chrf(said, [meant]).score
    assert found["scores"]["bleu"] == sacrebleu.corpus_bleu(said, [meant]).score
    assert found["scores"]["pairs"] == 5


def test_the_first_pairs_with_beams_and_stop(folder: Path, pairs: Path, evaluate: Any, tmp_path: Path) -> None:
    options = [*of_pairs(pairs), f"output={tmp_path / 'my output'}", "max_pairs=3", "max_new_tokens=9"]
    found = evaluate(f"checkpoint={folder}", *options, "num_beams=3", "batch_size=7")
    assert (found["pairs"], found["generated"], found["scores"]["pairs"]) == (5, 3, 3)
    made = lines_of(tmp_path / "my output" / "generations.jsonl")
    model, tokenizer = load_model(folder), Tokenizer.load(folder)
    for line, (prompt, _) in zip(made, PAIRS, strict=False):
        ((best,),) = beam_search(model, tokenizer, [prompt], num_beams=3, num_return=1, max_new_tokens=9)
        assert (line["prediction"], line["ended"]) == (best.text, best.ended)
    for beams in ("num_beams=3", "num_beams=1"):
        evaluate(f"checkpoint={folder}", *options, beams)
        whole = lines_of(tmp_path / "my output" / "generations.jsonl")
        stop = whole[0]["prediction"][1:3]
        evaluate(f"checkpoint={folder}", *options, beams, f"stop={stop}")
        stopped = lines_of(tmp_path / "my output" / "generations.jsonl")
        assert stopped[0] != whole[0]
        assert not any(stop in line["prediction"] for line in stopped)
    none = evaluate(f"checkpoint={folder}", *options[:-2], "max_pairs=0")
    assert (none["generated"], none["scores"], none["generations"]) == (0, None, None)


@pytest.mark.parametrize("kind", [{}, {"rope_scaling": "llama3", "rope_factor": 4.0, "dialect": "llama"}], ids=str)
def test_a_shorter_context_is_that_of_shorter_windows(
    kind: dict[str, Any], text: Path, evaluate: Any, tmp_path: Path
) -> None:
    folder = save_random(tmp_path / "models" / "random", **kind)
    found = evaluate(f"checkpoint={folder}", *of_text(text), "context_length=6")
    tokens = [END, *text.read_bytes(), END]
    loss, count = reference_loss(folder, [(tokens[start : start + 7], 1) for start in range(0, len(tokens) - 1, 6)])
    assert (found["context"], found["tokens"], found["loss"]) == (6, count, pytest.approx(loss, rel=1e-5))


def test_a_batch_holds_a_number_of_tokens_unless_it_is_given(
    folder: Path, pairs: Path, evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for_loss, for_completions = [], []

    measure = evaluate_module.evaluate

    def loss(*arguments: Any) -> Any:
        for_loss.append(arguments[4])
        return measure(*arguments)

    def generate(model: Any, tokenizer: Any, jobs: list[Any], *rest: Any, **options: Any) -> Any:
        for_completions.append(len(jobs))
        return decode_module.generate(model, tokenizer, jobs, *rest, **options)

    monkeypatch.setattr(evaluate_module, "evaluate", loss)
    monkeypatch.setattr(evaluate_module, "generate", generate)
    options = [f"checkpoint={folder}", *of_pairs(pairs), "max_new_tokens=1"]
    evaluate(*options)
    evaluate(*options, "context_length=15", "max_pairs=1")
    evaluate(*options, "batch_size=2", "num_beams=1")
    assert for_loss == [8192 // 16, 8192 // 15, 2]
    assert for_completions == [5, 1, 2, 2, 1]
    assert evaluate(*options, "num_beams=40", "max_pairs=1")["generated"] == 1


def test_pairs_that_are_not_chosen_are_not_read(
    folder: Path, pairs: Path, evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: PairStream) -> Any:
        yield from list(every(self))[:2]
        raise AssertionError("read on")

    every = PairStream.pairs
    monkeypatch.setattr(PairStream, "pairs", refuse)
    for count in (0, 2):
        found = evaluate(f"checkpoint={folder}", *of_pairs(pairs), f"max_pairs={count}", "max_new_tokens=1")
        assert (found["pairs"], found["generated"]) == (5, count)


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(
    folder: Path, text: Path, evaluate: Any, tmp_path: Path
) -> None:
    model = load_model(folder)
    add_adapters(model, LoRAConfig(rank=2))
    (tmp_path / "adapter").mkdir()
    save_adapters(model, tmp_path / "adapter", str(folder))
    found, base = (evaluate(f"checkpoint={name}", *of_text(text)) for name in (tmp_path / "adapter", folder))
    assert found == base | {"checkpoint": str(tmp_path / "adapter")}


def test_text_leaves_a_file_only_where_an_output_is_given(folder: Path, text: Path, evaluate: Any) -> None:
    found = evaluate(f"checkpoint={folder}", *of_text(text), "output=here")
    assert lines_of(Path("here/scores.json")) == [found]


# --- what is evaluated, and where the files go -------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A checkpoint that says that it was trained on a.txt."""
    folder = save_random(tmp_path / "run" / "checkpoints" / "step-00000001")
    config = RunConfig(
        data=DataConfig(name="text", files=("a.txt",), val_fraction=0.3, prepared_dir="there", workers=9)
    )
    write_trainer(folder, TrainerState(config=to_dict(config)), {}, {"cpu": torch.zeros(1)})
    return folder


def adopted(checkpoint: Path, given: dict[str, Any]) -> dict[str, Any]:
    values = defaults(EvaluateConfig) | {"checkpoint": str(checkpoint)}
    for name, value in given.items():
        group, _, last = ("data", ".", "name") if name == "data" else name.rpartition(".")
        (values[group] if group else values)[last] = value
    adopt_data(values, {"checkpoint", *given})
    return values


def test_without_data_options_it_is_what_the_checkpoint_held_out(trained: Path) -> None:
    found = from_dict(EvaluateConfig, adopted(trained, {}))
    assert found.part == "held_out"
    # A stranger's checkpoint does not choose where this machine writes, nor with how many processes.
    assert found.data == DataConfig(name="text", files=("a.txt",), val_fraction=0.3)
    elsewhere = from_dict(EvaluateConfig, adopted(trained, {"data.prepared_dir": "here", "data.workers": 1}))
    assert elsewhere.data == replace(found.data, prepared_dir="here", workers=1)
    assert from_dict(EvaluateConfig, adopted(trained, {"part": "all"})).part == "all"


def test_with_a_source_it_is_all_of_its_text(trained: Path, folder: Path) -> None:
    given = {"data": "text", "data.files": ("b.txt",), "data.workers": 2}
    for checkpoint in (trained, folder):
        found = from_dict(EvaluateConfig, adopted(checkpoint, given))
        assert (found.part, found.data) == ("all", DataConfig(name="text", files=("b.txt",), workers=2))
    held_out = from_dict(EvaluateConfig, adopted(folder, given | {"data.val_files": ("c.txt",)}))
    assert (held_out.part, held_out.data.files, held_out.data.val_files) == ("held_out", ("b.txt",), ("c.txt",))
    both = from_dict(EvaluateConfig, adopted(folder, given | {"data.val_files": ("c.txt",), "part": "all"}))
    assert (both.part, both.data.files, both.data.val_files) == ("all", ("b.txt", "c.txt"), ())


@pytest.mark.parametrize(("kind", "template"), [("jsonl", "{title}: {text}"), ("huggingface", "{text}")])
def test_the_same_kind_of_data_is_read_as_in_training(tmp_path: Path, kind: str, template: str) -> None:
    data = DataConfig(name="jsonl", files=("a",), template="{title}: {text}", val_fraction=0.3)
    folder = save_random(tmp_path / "run" / "checkpoints" / "best")
    write_trainer(folder, TrainerState(config=to_dict(RunConfig(data=data))), {}, {"cpu": torch.zeros(1)})
    given = {"data": kind, "data.files": ("b",)}
    found = from_dict(EvaluateConfig, adopted(folder, given))
    assert (found.part, found.data) == ("all", DataConfig(name=kind, files=("b",), template=template))
    other = from_dict(EvaluateConfig, adopted(folder, given | {"data.template": "{other}"}))
    assert other.data.template == "{other}"
    data = DataConfig(name="huggingface", files=("a",), column="body")
    write_state(folder, TrainerState(config=to_dict(RunConfig(data=data))), {"cpu": torch.zeros(1)})
    own = {"data": "huggingface", "data.files": ("b",), "data.template": "{other}"}
    found = from_dict(EvaluateConfig, adopted(folder, own))
    assert (found.data.column, found.data.template) == (None, "{other}")


def test_files_alone_are_read_as_in_training(tmp_path: Path) -> None:
    data = DataConfig(name="pairs", files=("a",), val_files=("b",), prompt="{q}\n", completion="{a}")
    folder = save_random(tmp_path / "run" / "checkpoints" / "best")
    write_trainer(folder, TrainerState(config=to_dict(RunConfig(data=data))), {}, {"cpu": torch.zeros(1)})
    found = from_dict(EvaluateConfig, adopted(tmp_path / "run", {"data.files": ("c",)}))
    assert (found.part, found.data) == ("all", replace(data, files=("c",), val_files=()))
    found = from_dict(EvaluateConfig, adopted(tmp_path / "run", {"data.val_files": ("c",)}))
    assert (found.part, found.data) == ("held_out", replace(data, val_files=("c",)))
    found = from_dict(EvaluateConfig, adopted(tmp_path / "run", {}))
    assert (found.part, found.data) == ("held_out", data)
    found = from_dict(EvaluateConfig, adopted(tmp_path / "run", {"part": "all"}))
    assert (found.part, found.data) == ("all", replace(data, files=("a", "b"), val_files=()))


def test_data_that_this_version_does_not_know_is_refused_with_a_way_out(trained: Path) -> None:
    state = TrainerState(config={"data": {"name": "text", "files": ["a.txt"], "future": 1, "val_fraction": "x"}})
    (trained / "trainer" / "state.json").write_text(json.dumps({"format": 1} | asdict(state)))
    with pytest.raises(UserError, match=r"(?s)cannot read; .* data=text data\.files=.*future=1: .*val_fraction=x: "):
        adopted(trained, {})
    (trained / "trainer" / "state.json").write_text(json.dumps({"format": 1} | asdict(state) | {"config": []}))
    with pytest.raises(UserError, match=r"state\.json cannot be read \(config is \[\]\)"):
        adopted(trained, {})


def test_a_checkpoint_that_does_not_know_its_data_needs_some(folder: Path) -> None:
    with pytest.raises(UserError, match=r"does not say what it was trained on .* data=text data\.files="):
        adopted(folder, {})


@pytest.mark.parametrize(
    ("checkpoint", "data", "output", "expected"),
    [
        ("run", "pairs", "", "run/evaluation/step-00000500"),
        ("run/checkpoints/step-00000900", "pairs", "", "run/evaluation/step-00000900"),
        ("run", "pairs", "mine", "mine"),
        ("run", "text", "", None),
        ("run", "text", "mine", "mine"),
        ("models/random", "pairs", "", "evaluations/models--random"),
        (".", "pairs", "", "evaluations/NAME"),
        ("org/tiny@refs/pr/1", "pairs", "", "evaluations/org--tiny@refs--pr--1"),
        ("gpt2", "pairs", "", "evaluations/gpt2"),
    ],
)
def test_where_the_files_go(
    checkpoint: str, data: str, output: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("run/checkpoints/step-00000500", "run/checkpoints/step-00000900", "models/random"):
        Path(folder).mkdir(parents=True)
    Path("run/checkpoints/best").symlink_to("step-00000500")
    options = {"prompt": "{a}", "completion": "{b}"} if data == "pairs" else {}
    config = EvaluateConfig(checkpoint, output=output, data=DataConfig(data, files=("a",), **options))
    found = output_folder(config, Path("run/checkpoints/best" if checkpoint == "run" else checkpoint))
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found.resolve() == tmp_path / expected.replace("NAME", tmp_path.name)
        assert found.is_dir()


def test_what_is_not_finite_is_null() -> None:
    found = without_nan({"loss": math.nan, "scores": {"bleu": math.inf, "chrf": 1.5, "note": None}, "tokens": 3})
    assert found == {"loss": None, "scores": {"bleu": None, "chrf": 1.5, "note": None}, "tokens": 3}


# --- mistakes ----------------------------------------------------------------------------------------------------

A_TEXT = ["data=text", "data.files=x.txt"]
A_PAIR = ["data=pairs", "data.files=x.jsonl", "data.prompt={a}", "data.completion={b}"]
# The checkpoint in models/, more options, and what the message must hold.
BAD: dict[str, tuple[str, list[str], str]] = {
    "no checkpoint": ("", [], "checkpoint=: is missing"),
    "a missing checkpoint": ("nowhere", A_TEXT, "checkpoint=models/nowhere"),
    "no data": ("random", [], "does not say what it was trained on"),
    "a missing file": ("random", ["data=text", "data.files=none.txt"], "none.txt"),
    "an empty file": ("random", ["data=text", "data.files=empty.txt"], "empty.txt"),
    "a wide stride": ("random", [*A_TEXT, "stride=17"], "stride=17"),
    "a stride beyond the context": ("random", [*A_TEXT, "stride=9", "context_length=8"], "stride=9: windows of 8"),
    "a longer context": ("random", [*A_TEXT, "context_length=17"], "context_length=17: the model was made for 16"),
    "no context": ("random", [*A_TEXT, "context_length=0"], "context_length=0"),
    "more beams than a batch": ("random", [*A_PAIR, "num_beams=3", "batch_size=2"], "num_beams=3"),
    "an empty stop": ("random", [*A_PAIR, "stop="], "stop="),
    "an unwritable output": ("random", [*A_TEXT, "output=/proc/x"], "output=/proc/x cannot be written to"),
    "nobody's home": ("random", [*A_TEXT, "output=~nobody-here/x", "stride=17"], "stride=17"),
    "a stride for pairs": ("random", [*A_PAIR, "stride=2"], "stride=2"),
    "beams for text": ("random", [*A_TEXT, "num_beams=2"], "num_beams=2"),
    "a stop for text": ("random", [*A_TEXT, "stop=x"], "stop=[x]"),
    "a file as output": ("random", [*A_TEXT, "output=x.txt"], "output=x.txt"),
    "another tokenizer": ("small", A_TEXT, "do not belong together"),
    "an unknown character": ("char", A_TEXT, "☃"),
    "a prompt that fills the context": ("random", A_PAIR, "context_length=16"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes(
    case: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_random(tmp_path / "models" / "small", vocab_size=200)
    save_random(tmp_path / "models" / "char")
    build_tokenizer(TokenizerConfig(name="char"), characters="abc").save(tmp_path / "models" / "char")
    Path("x.txt").write_text("abc ☃", encoding="utf-8")
    Path("x.jsonl").write_text(json.dumps({"a": "x" * 40, "b": "y"}) + "\n")
    Path("empty.txt").touch()
    name, options, message = BAD[case]
    checkpoint = [f"checkpoint=models/{name}"] if name else []
    status = main(COMMAND, evaluate_, [*checkpoint, *options, "device=cpu", "data.prepared_dir=prepared"])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert message in err

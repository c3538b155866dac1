"""What `sample.py` prints and writes with beams, and which options it refuses."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gpt.config import SampleConfig, TokenizerConfig
from gpt.inference import console
from gpt.inference.console import draft_kind, printable, read_prompts, sample
from gpt.inference.quantize import possible_draft
from gpt.model import available, hardware
from gpt.model.hardware import Hardware
from gpt.model.huggingface import save_model
from gpt.model.process import resident_memory
from gpt.options import ConfigError, UserError
from gpt.text.vocabularies import build_tokenizer

from ..model.conftest import make_decoder
from .conftest import varied_decoder, x86

Run = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer(TokenizerConfig(name="char"), characters="月滿西樓葉落一夜秋風abcdef\n")
    tokenizer.save(folder)
    model = varied_decoder(tokenizer.vocab_size, dialect="qwen3", tie_embeddings=False)
    save_model(model, folder, tokenizer.end_of_text)
    return folder


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(**options: object) -> str:
        options = {"max_new_tokens": 12, "device": "cpu", **options}
        assert sample(SampleConfig(checkpoint=str(folder), **options)) == 0  # type: ignore[arg-type]
        return capsys.readouterr().out

    return run


def test_a_line_end_that_the_shell_did_not_write_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for prompt, told in ((r"春\n李白\n", True), ("春\n李白\n", False), ("a\\b", False)):
        assert read_prompts(SampleConfig(checkpoint="x", prompt=prompt)) == [prompt]
        assert ("a backslash and an n" in capsys.readouterr().err) == told


def test_beams_are_printed_best_first_and_repeat_whatever_the_seed(run: Run) -> None:
    three = run(prompt="月滿西樓", num_samples=3, num_beams=3, seed=42)
    assert three == run(prompt="月滿西樓", num_samples=3, num_beams=3, seed=43)
    texts = three.split("---\n")
    assert len(set(texts)) == 3
    assert all(text.startswith("月滿西樓") for text in texts)
    assert run(prompt="月滿西樓", num_beams=3) == texts[0]
    assert run(prompt="月滿西樓", num_beams=3, stream=False) == texts[0]


def test_a_conversation_with_beams(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("葉落\n一夜\n"))
    assert run(interactive=True, num_beams=4) == run(prompt="葉落", num_beams=4) + run(prompt="一夜", num_beams=4)


def test_the_length_penalty_and_the_repetition_penalty_reach_the_search(run: Run) -> None:
    options = {"prompt": "葉落", "num_beams": 4, "num_samples": 4, "stop": ("樓", "西")}
    assert run(**options) != run(**options, length_penalty=-2.0)
    assert run(**options) != run(**options, repetition_penalty=2.0)


def test_scores_are_written_and_prompts_share_a_batch(run: Run, tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.txt", tmp_path / "made.jsonl"
    prompts.write_text("月\n葉落\n一夜秋風\n", encoding="utf-8")
    written = []
    for batch_size in (4, 11, 100):
        run(prompt_file=str(prompts), output=str(output), num_beams=4, num_samples=2, batch_size=batch_size)
        written.append([json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()])
    first = written[0]
    assert [(line["prompt"], line["sample"]) for line in first] == [
        (prompt, rank) for prompt in ("月", "葉落", "一夜秋風") for rank in (0, 1)
    ]
    assert list(first[0]) == ["prompt", "sample", "text", "ended", "tokens", "score"]
    for best, second in zip(first[::2], first[1::2], strict=True):
        assert second["score"] <= best["score"] < 0
    for other in written[1:]:
        assert [line["text"] for line in other] == [line["text"] for line in first]


def test_a_link_stays_and_leads_to_the_samples(run: Run, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.jsonl").symlink_to("folder/made.jsonl")
    for _ in range(2):  # the file is not there, then it is
        run(prompt="月", output=str(tmp_path / "link.jsonl"))
        assert [path.name for path in (tmp_path / "folder").iterdir()] == ["made.jsonl"]
        assert (tmp_path / "link.jsonl").is_symlink()


def test_a_pipe_is_written_to(run: Run, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    run(prompt="月", output=str(pipe))
    assert json.loads(os.read(reader, 10_000))["prompt"] == "月"
    os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]


def test_samples_that_fail_leave_the_file_as_it_was(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "made.jsonl"
    output.write_text("mine")
    monkeypatch.setattr("gpt.inference.console.sample_line", lambda made: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(prompt="月", output=str(output))
    assert (output.read_text(), list(tmp_path.iterdir())) == ("mine", [output])


@pytest.mark.parametrize(
    "output", ["/proc/x", "nowhere/x", ".", "a" * 250, "~nobody-here/x"], ids=lambda name: name[:9]
)
def test_an_output_that_cannot_be_is_refused_before_the_model_is_opened(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"output={output} cannot be written"):
        sample(SampleConfig(checkpoint="nowhere", output=output))
    assert not list(tmp_path.iterdir())


def test_the_cpu_decodes_in_fp32_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_multiplies_bf16", lambda: True)
    assert hardware.choose_hardware("cpu", "auto", 512).precision == "bf16"
    assert hardware.decoding_hardware("cpu", "auto", 512).precision == "fp32"
    assert hardware.decoding_hardware("cpu", "bf16", 64).precision == "bf16"


def test_samples_have_no_score(run: Run, tmp_path: Path) -> None:
    run(prompt="月", output=str(tmp_path / "made.jsonl"))
    assert "score" not in json.loads((tmp_path / "made.jsonl").read_text(encoding="utf-8"))


def test_the_usual_temperature_and_greedy_text(run: Run) -> None:
    assert run(prompt="月") == run(prompt="月", temperature=0.8)
    assert run(prompt="月", temperature=0.0, seed=1) == run(prompt="月", temperature=0.0, seed=2)
    assert run(prompt="月", temperature=0.0, seed=1) == run(prompt="月", top_k=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 3, "temperature": 0.8}, "temperature=0.8: beam search is deterministic and does not sample"),
        ({"num_beams": 3, "temperature": 0.0}, "temperature=0.0: beam search"),
        ({"num_beams": 3, "top_k": 5}, "top_k=5: beam search"),
        ({"num_beams": 3, "top_p": 0.9}, "top_p=0.9: beam search"),
        ({"num_beams": 3, "min_p": 0.0}, "min_p=0.0: beam search"),
        ({"num_beams": 3, "num_samples": 4}, "num_samples=4: is more than num_beams=3"),
        ({"num_beams": 33}, "num_beams=33: a prompt's beams are decoded at once, and batch_size=32 is less"),
        ({"length_penalty": 2.0}, "length_penalty=2.0: compares beams"),
        ({"num_beams": 3, "length_penalty": 11.0}, "length_penalty=11.0: must be at most 10"),
        ({"num_beams": 0}, "num_beams"),
    ],
    ids=str,
)
def test_what_does_not_go_with_beams_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        SampleConfig(checkpoint="x", **options)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert printable("a\x1b[2Jb\tc\nd\x12\x9b葉\r") == "a�[2Jb\tc\nd��葉�"


@x86
def test_quantised_weights_write_text_and_are_named(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"prompt": "月滿西樓", "temperature": 0.0, "checkpoint": str(folder), "device": "cpu"}
    whole = run(prompt="月滿西樓", temperature=0.0)
    for quantize, words in (("none", "weights packed"), ("int8", "weights int8"), ("int4", "weights int4 by 32")):
        assert sample(SampleConfig(**options, max_new_tokens=12, quantize=quantize)) == 0  # type: ignore[arg-type]
        out, err = capsys.readouterr()
        assert words in err
        assert quantize != "none" or out == whole
        assert out.startswith("月滿西樓")


@x86
def test_a_draft_changes_nothing_but_is_named(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"prompt": "月滿西樓", "temperature": 1.0, "checkpoint": str(folder), "device": "cpu"}
    whole = run(prompt="月滿西樓", temperature=1.0)
    for draft in ("int8", "int4"):
        assert sample(SampleConfig(**options, max_new_tokens=12, draft=draft)) == 0  # type: ignore[arg-type]
        out, err = capsys.readouterr()
        assert f"guesses by weights in {draft}" in err
        assert out == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int8"}, "draft=int4: guesses for weights in full; leave out quantize=int8"),
        ({"precision": "bf16"}, "draft=int4: guesses for fp32; leave out precision=bf16"),
        ({"num_beams": 3}, "draft=int4: beam search weighs many texts at once"),
    ],
    ids=str,
)
def test_what_does_not_go_with_a_draft_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        SampleConfig(checkpoint="x", draft="int4", **options)  # type: ignore[arg-type]
    assert message in str(error.value)


@x86
@pytest.mark.parametrize(
    ("options", "sequences", "kind"),
    [
        ({}, 1, "int4"),
        ({}, 4, "int4"),
        ({}, 5, "none"),
        ({"batch_size": 4}, 500, "int4"),
        ({"max_new_tokens": 50}, 1, "none"),
        ({"max_new_tokens": 50, "batch_size": 2}, 3, "int4"),
        ({"max_new_tokens": 50, "interactive": True}, 1, "int4"),
        ({"max_new_tokens": 50, "draft": "int8"}, 100, "int8"),
        ({"draft": "none"}, 1, "none"),
        ({"quantize": "int8"}, 1, "none"),
        ({"num_beams": 3}, 3, "none"),
    ],
    ids=str,
)
def test_a_draft_is_made_where_it_pays(
    options: dict[str, object], sequences: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cpu = make_decoder(n_embd=64), torch.device("cpu")
    place = Hardware(cpu, "fp32")
    config = SampleConfig(checkpoint="x", **options)  # type: ignore[arg-type]
    if config.draft == "auto":
        assert draft_kind(config, model, place, sequences) == "none"  # too small
    monkeypatch.setattr(console, "DRAFTED_PARAMETERS", 1000)
    assert draft_kind(config, model, place, sequences) == kind
    if config.draft == "auto":
        assert draft_kind(config, model, Hardware(cpu, "bf16"), sequences) == "none"
        monkeypatch.setattr(available, "available_memory", lambda device: resident_memory() + 1000)
        assert draft_kind(config, model, place, sequences) == "none"


@x86
def test_a_draft_is_what_there_is_a_kernel_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Hardware(torch.device("cpu"), "fp32")
    assert possible_draft(make_decoder(n_embd=64), cpu) == "int4"
    assert possible_draft(make_decoder(n_embd=48), cpu) == "int8"  # no multiples of 32 inputs
    assert possible_draft(make_decoder(), Hardware(torch.device("cuda"), "fp32")) == "none"
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["qnnpack"])
    assert possible_draft(make_decoder(), cpu) == "none"


def test_all_sequences_that_are_asked_for_count(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(console, "draft_kind", lambda config, model, place, n: asked.append(n) or "none")
    (tmp_path / "prompts.txt").write_text("a\nb\nc\n")
    options = {"prompt_file": str(tmp_path / "prompts.txt"), "num_samples": 2, "max_new_tokens": 1, "device": "cpu"}
    assert sample(SampleConfig(checkpoint=str(folder), **options)) == 0  # type: ignore[arg-type]
    assert asked == [6]

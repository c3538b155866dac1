"""The files of metrics when a run continues, and when its curves are drawn."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gpt.config import RunConfig
from gpt.training import curves, metrics, report
from gpt.training.checkpoints import CheckpointFolder, read_state
from gpt.training.curves import Curve, draw_curves, read_curves
from gpt.training.metrics import JsonLines, duration, read_lines
from gpt.training.run import train
from gpt.training.trainer import Trainer

MakeConfig = Callable[..., RunConfig]


def test_lines_beyond_the_step_of_a_continued_run_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 5, "text": "葉\u2028\x85"}\n{"step": 9}\n{"step": 1', encoding="utf-8")
    lines = JsonLines(path, from_step=5)
    lines.write({"step": 6})
    lines.close()
    assert path.read_text(encoding="utf-8") == '{"step": 1}\n{"step": 5, "text": "葉\u2028\x85"}\n{"step": 6}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]
    path.write_bytes(path.read_bytes() + b'[7]\n{"step": 8}\n{"ste')
    assert [line["step"] for line in read_lines(path)] == [1, 5, 6, 8]
    assert read_lines(tmp_path / "none") == []


def test_without_a_checkpoint_no_line_stays(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "val/loss": 5.0}\n', encoding="utf-8")  # killed before the checkpoint of step 0
    JsonLines(path, from_step=-1).close()
    assert path.read_text(encoding="utf-8") == ""


def test_what_is_no_line_of_metrics_ends_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 1}\n\n{"step": 2}\n'
    for strange in ("3", "[1]", "{}", '{"step": "x"}', '{"step": null}', "\0\0"):
        path.write_text(f'{good}{strange}\n{{"step": 3}}\n', encoding="utf-8")
        JsonLines(path, from_step=9).close()
        assert path.read_text(encoding="utf-8") == good


def test_what_the_checkpoint_remembers_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    before = b"no line at all\n" + b'{"step": 7}\n' * 100_000 + b'{"step": 8, "text": "\xe8\x91\x89"}\n'
    path.write_bytes(before + b'{"step": 9}\n{"step": 1')
    seen: list[bytes] = []
    step_of = metrics.step_of
    monkeypatch.setattr(metrics, "step_of", lambda line: seen.append(line) or step_of(line))
    lines = JsonLines(path, from_step=8, n_bytes=len(before))
    lines.write({"step": 9, "again": True})
    assert lines.sync() == path.stat().st_size
    lines.close()
    assert path.read_bytes() == before + b'{"step": 9, "again": true}\n'
    assert len(seen) == 1


@pytest.mark.parametrize("n_bytes", [-5, 5, 11, 13, 24, 36, 48, 49, 10**9])
def test_a_length_that_is_not_the_files_is_not_believed(n_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {step}}}\n' for step in (1, 2, 3, 4)]  # 12 bytes each
    path.write_text("".join(lines))
    JsonLines(path, from_step=2, n_bytes=n_bytes).close()
    assert path.read_text() == "".join(lines[:2])


def test_a_line_longer_than_what_is_looked_at_is_found_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    long = json.dumps({"step": 1, "text": "x" * metrics.LONGEST_LINE}) + "\n"
    path.write_text(long + '{"step": 2}\n')
    JsonLines(path, from_step=1, n_bytes=len(long)).close()
    assert path.read_text() == long


def test_a_checkpoint_knows_the_lines_before_it(make_config: MakeConfig) -> None:
    config = make_config(train={"keep_checkpoints": 9})
    train(config)
    run_dir = Path(config.run_dir)
    for step in CheckpointFolder(run_dir).steps():
        state = read_state(CheckpointFolder(run_dir).at(step))
        for name, n_bytes in (("metrics.jsonl", state.metrics_bytes), ("samples.jsonl", state.samples_bytes)):
            kept = (run_dir / name).read_bytes()[:n_bytes].decode().splitlines()
            assert json.loads(kept[-1])["step"] == step
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (run_dir / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 13}', '{"st']))
    train(replace(config, train=replace(config.train, max_steps=14)))
    now = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert now[: len(lines)] == lines
    assert [json.loads(line)["step"] for line in now[len(lines) :]] == [13, 14, 14]


def test_a_checkpoint_comes_after_its_lines_are_on_the_disk(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, publish = JsonLines.sync, CheckpointFolder.publish
    monkeypatch.setattr(JsonLines, "sync", lambda self: events.append(Path(self.file.name).name) or sync(self))
    monkeypatch.setattr(CheckpointFolder, "publish", lambda *args: events.append("publish") or publish(*args))
    train(make_config())
    assert events == ["metrics.jsonl", "samples.jsonl", "publish"] * 3


def line_of(step: int, name: str = "train/loss") -> bytes:
    return json.dumps({"step": step, name: float(step)}).encode() + b"\n"


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 17, 63, 64, 65, 1000])
def test_a_curve_keeps_few_points_evenly_and_the_last(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MOST_LINES", 8)
    curve = Curve("train/loss")
    for step in range(count):
        curve.add(line_of(step))
        curve.add(line_of(step, "val/loss"))
    steps = [step for step, value in curve.points()]
    assert all(step == value for step, value in curve.points())
    stride = next(2**k for k in range(20) if count <= 8 * 2**k)
    assert steps == sorted({*range(0, count, stride), *range(count)[-1:]})


def test_the_curves_of_a_file_are_those_of_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    odd = [b"\n", b'{"train/loss": 1}\n', b'{"step": 2, "train/loss": "x"}\n', b'["train/loss":\n', b'{"step": 1, "tra']
    path.write_bytes(line_of(1) + line_of(1, "val/loss") + b"".join(odd[:-1]) + line_of(3) + odd[-1])
    train_loss, val_loss = read_curves(path)
    assert list(train_loss.points()) == [(1, 1.0), (3, 3.0)]
    assert list(val_loss.points()) == [(1, 1.0)]


def test_the_picture_shows_whatever_there_is(tmp_path: Path) -> None:
    for lines in ([], [line_of(1)], [line_of(1), line_of(1, "val/loss")]):
        (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
        draw_curves(read_curves(tmp_path / "metrics.jsonl"), tmp_path / "loss.png", "a run")
        with Image.open(tmp_path / "loss.png") as picture:
            assert picture.format == "PNG"


def test_a_picture_leaves_nothing_in_memory(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(line_of(1))
    drawn = read_curves(tmp_path / "metrics.jsonl")
    gc.collect()  # what other tests have left
    for _ in range(3):
        draw_curves(drawn, tmp_path / "loss.png", "a run")
        assert gc.isenabled()
        assert not [each for each in gc.get_objects() if type(each).__name__ in ("Figure", "Axes")]


@pytest.mark.parametrize("measured", [[1e6, 1e12], [1e2, 1e3, 1e12]], ids=["at the start", "at the first log too"])
def test_a_peak_that_was_measured_in_a_busy_moment_is_measured_again(
    measured: list[float], make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = iter(measured)
    monkeypatch.setattr(report, "peak_flops", lambda hardware: next(peaks))
    config = make_config(train={"max_steps": 3, "log_every": 1, "eval_every": 3})
    assert train(config) == 0
    lines = [line for line in read_lines(Path(config.run_dir) / "metrics.jsonl") if "train/mfu" in line]
    assert len(lines) == 3
    assert all(0 < line["train/mfu"] < 1 for line in lines[len(measured) - 2 :])


def test_durations_are_for_people() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 200, 18_725)] == [
        "0 s",
        "1 min 0 s",
        "3 min 20 s",
        "5 h 12 min",
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The last steps of the two curves of each picture."""
    steps: list[tuple[int, int]] = []

    def draw(curves: list[Curve], path: Path, title: str) -> None:
        train_loss, val_loss = (list(curve.points()) for curve in curves)
        assert [step for step, _ in train_loss] == [*range(1, train_loss[-1][0] + 1)]
        steps.append((train_loss[-1][0], val_loss[-1][0]))

    monkeypatch.setattr(report, "draw_curves", draw)
    return steps


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, [4, 8, 12]), (3600.0, [12])])
def test_curves_are_drawn_now_and_then_and_at_the_end(
    seconds: float, expected: list[int], drawn: list[Any], make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "DRAW_EVERY_SECONDS", seconds)
    train(make_config())
    assert drawn == [(step, step) for step in expected]


def test_a_run_that_breaks_still_draws(
    drawn: list[Any], make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Trainer.update

    def broken(self: Trainer) -> Any:
        if self.state.step == 6:
            raise RuntimeError("a bug")
        return update(self)

    monkeypatch.setattr(Trainer, "update", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        train(make_config())
    assert drawn == [(6, 4)]


@pytest.mark.parametrize("within_c", [False, True])
def test_an_interrupted_picture_is_not_begun_again(
    within_c: bool, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def interrupted(curves: list[Curve], path: Path, title: str) -> None:
        attempts.append(path)
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            if within_c:
                raise ImportError("initialization failed") from interrupt
            raise

    monkeypatch.setattr(report, "draw_curves", interrupted)
    monkeypatch.setattr(report, "DRAW_EVERY_SECONDS", 0.0)
    with pytest.raises((KeyboardInterrupt, ImportError)):
        train(make_config())
    assert len(attempts) == 1

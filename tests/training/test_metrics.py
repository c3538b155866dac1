"""The files of metrics when a run continues, and when its curves are drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gpt.config import RunConfig
from gpt.training import report
from gpt.training.metrics import JsonLines, draw_losses, duration, read_lines
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
    assert [line["step"] for line in read_lines(path)] == [1, 5, 6]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_without_a_checkpoint_no_line_stays(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "val/loss": 5.0}\n', encoding="utf-8")  # killed before the checkpoint of step 0
    JsonLines(path, from_step=-1).close()
    assert path.read_text(encoding="utf-8") == ""


def test_what_is_no_line_of_metrics_ends_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for strange in ("3", "[1]", "{}", '{"step": "x"}', '{"step": null}', "\0\0"):
        path.write_text(f'{{"step": 1}}\n\n{{"step": 2}}\n{strange}\n{{"step": 3}}\n', encoding="utf-8")
        JsonLines(path, from_step=9).close()
        assert [line["step"] for line in read_lines(path)] == [1, 2]


def test_the_picture_shows_whatever_there_is(tmp_path: Path) -> None:
    for lines in ([], [{"step": 1, "train/loss": 3.0}], [{"step": 1, "train/loss": 3.0}, {"step": 1, "val/loss": 2.0}]):
        draw_losses(lines, tmp_path / "loss.png", "a run")
        with Image.open(tmp_path / "loss.png") as picture:
            assert picture.format == "PNG"


def test_durations_are_for_people() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 200, 18_725)] == [
        "0 s",
        "1 min 0 s",
        "3 min 20 s",
        "5 h 12 min",
    ]


@pytest.mark.parametrize(("seconds", "drawn"), [(0.0, [4, 8, 12]), (3600.0, [12])])
def test_curves_are_drawn_now_and_then_and_at_the_end(
    seconds: float, drawn: list[int], make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(report, "DRAW_EVERY_SECONDS", seconds)
    monkeypatch.setattr(report, "draw_losses", lambda lines, path, title: steps.append(lines[-1]["step"]))
    train(make_config())
    assert steps == drawn


def test_a_run_that_breaks_still_draws(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(report, "draw_losses", lambda lines, path, title: steps.append(lines[-1]["step"]))
    update = Trainer.update

    def broken(self: Trainer) -> Any:
        if self.state.step == 6:
            raise RuntimeError("a bug")
        return update(self)

    monkeypatch.setattr(Trainer, "update", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        train(make_config())
    assert steps == [6]

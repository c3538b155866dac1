"""What a sweep says at its end, against files written by hand and a slow loop over them."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from gpt.sweeps.picture import draw_sweep
from gpt.sweeps.plan import Run
from gpt.sweeps.results import Evaluation, Result, read_result
from gpt.sweeps.summary import print_summary, ranked, write_summary

LINES = [
    {"step": 1, "elapsed_seconds": 1.5, "tokens": 8, "train/loss": 9.0, "train/tokens_per_second": 10.0},
    {"step": 2, "elapsed_seconds": 2.5, "tokens": 16, "train/loss": 8.0, "train/tokens_per_second": 30.0},
    {"step": 2, "elapsed_seconds": 3.0, "tokens": 16, "val/loss": 3.5, "val/bits_per_byte": 2.5},
    {"step": 4, "elapsed_seconds": 4.0, "tokens": 32, "val/loss": 3.25, "val/bits_per_byte": 2.25},
    {"step": 6, "elapsed_seconds": 5.5, "tokens": 48, "val/loss": 3.75, "val/bits_per_byte": 2.75},
    {"step": 6, "elapsed_seconds": 5.75, "tokens": 48, "train/loss": 7.0, "train/tokens_per_second": 20.0},
]


def text(lines: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def make_run(folder: Path, content: bytes | None = None, **values: Any) -> Run:
    run = Run(folder / ",".join(f"{name}={value}" for name, value in values.items()), (), values)
    run.folder.mkdir(parents=True)
    if content is not None:
        (run.folder / "metrics.jsonl").write_bytes(content)
    return run


def test_a_run_is_read(tmp_path: Path) -> None:
    result = read_result(make_run(tmp_path, text(LINES), seed=1), 0)
    assert result.best == Evaluation(4, 3.25, 2.25)
    assert (result.tokens_per_second, result.seconds, result.state) == (20.0, 5.75, "done")
    assert result.evaluations == [Evaluation(2, 3.5, 2.5), Evaluation(4, 3.25, 2.25), Evaluation(6, 3.75, 2.75)]


DAMAGED: dict[str, tuple[bytes | None, float | None]] = {  # and the best loss that can still be read
    "missing": (None, None),
    "empty": (b"", None),
    "noise": (random.Random(0).randbytes(5000), None),
    "zeros": (bytes(5000), None),
    "brackets": (b"[" * 100_000, None),
    "cut": (text(LINES)[:-200], 3.5),
    "a bad line": (text(LINES[:3]) + b'{"step": 3, "val/l\xff\n[]\n7\nnull\n' + text(LINES[3:]), 3.25),
    "not finite": (b'{"step": 1, "val/loss": NaN}\n{"step": 2, "val/loss": -Infinity}\n' + text(LINES), 3.25),
    "no numbers": (
        b'{"step": "1", "val/loss": 1}\n{"step": 2, "val/loss": "1"}\n{"step": 2, "val/loss": true}\n',
        None,
    ),
    "a huge number": (b'{"step": 1, "val/loss": 1' + b"0" * 400 + b"}\n" + text(LINES), 3.25),
    "no bits": (b'{"step": 1, "val/loss": 4.5}\n', 4.5),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_run_does_not_stop_the_others(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, best = DAMAGED[damage]
    bad = make_run(tmp_path, content, seed=1)
    (bad.folder / "config.yaml").write_bytes(b"{[\xff" if damage == "noise" else b"seed: [")
    results = [read_result(bad, 1), read_result(make_run(tmp_path, text(LINES), seed=2), 0)]
    print_summary(results)
    write_summary(tmp_path, results)
    lines = [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["seed"]: line["val/loss"] for line in lines} == {1: best, 2: 3.25}
    assert (tmp_path / "sweep.png").is_file()
    assert "failed with exit status 1" in capsys.readouterr().err


def test_metrics_that_are_a_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path, seed=1)
    (run.folder / "metrics.jsonl").mkdir()
    (run.folder / "config.yaml").mkdir()
    assert read_result(run, -9) == Result(run, -9, {"seed": 1})


def test_the_table_has_the_best_first_and_says_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worse = [line | ({"val/loss": 4.0} if "val/loss" in line else {}) for line in LINES]
    results = [
        read_result(make_run(tmp_path, text(worse), seed=1, x="a"), 0),
        read_result(make_run(tmp_path, text(LINES), seed=2, x="a, [b]"), 143),
        read_result(make_run(tmp_path, None, seed=3, x="a"), 2),
        read_result(make_run(tmp_path, None, seed=4, x="a"), None),
    ]
    print_summary(results)
    table, rest = capsys.readouterr().err.splitlines()[:4], capsys.readouterr()
    assert rest.out == ""
    assert [line.split()[0] for line in table] == ["seed", "2", "1", "3"]
    assert table[1].split() == ["2", "a,", "[b]", "3.2500", "2.250", "4", "20", "5.8", "interrupted"]
    assert table[3].split() == ["3", "a", "failed", "with", "exit", "status", "2"]
    print_summary(results)
    said = capsys.readouterr().err
    assert f"1 of 4 runs failed: {tmp_path / 'seed=3,x=a'} (exit status 2)" in said
    assert "2 of 4 runs are not done. The same command continues." in said


def test_lines_are_whole_and_typed(tmp_path: Path) -> None:
    values = {"optimizer.lr": 1e-3, "seed": 7, "schedule": 'a, "b"', "train.compile": True, "train.max_epochs": None}
    run = make_run(tmp_path, text(LINES), **values)
    write_summary(tmp_path, [read_result(run, 0)])
    (line,) = (tmp_path / "sweep.jsonl").read_text(encoding="utf-8").splitlines()
    expected = {"run": str(run.folder), "state": "done", "exit_status": 0, "val/loss": 3.25, "val/bits_per_byte": 2.25}
    assert json.loads(line) == values | expected | {"step": 4, "tokens_per_second": 20.0, "seconds": 5.75}


def test_the_value_that_a_run_took(tmp_path: Path) -> None:
    run = make_run(tmp_path, None, **{"train.batch_size": "auto", "optimizer": "adamw", "seed": 1})
    (run.folder / "config.yaml").write_text("train: {batch_size: 12}\noptimizer: {name: adamw}\n")
    assert read_result(run, 0).values == {"train.batch_size": 12, "optimizer": "adamw", "seed": 1}


def test_nothing_is_written_where_there_is_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "new/seed=1", (), {"seed": 1})
    write_summary(tmp_path / "new", [read_result(run, 2)])
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    write_summary(tmp_path / "new", [read_result(run, 2)])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sweep.jsonl"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", ["sweep.jsonl.partial", "sweep.png.partial"])
def test_a_full_disk_keeps_what_was_there(name: str, tmp_path: Path) -> None:
    results = [read_result(make_run(tmp_path, text(LINES), seed=1), 0)]
    (tmp_path / "sweep.jsonl").write_text("before")
    (tmp_path / "sweep.png").write_text("before")
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        write_summary(tmp_path, results)
    assert str(caught.value.filename).startswith(str(tmp_path / "sweep."))
    assert (tmp_path / "sweep.png").read_text() == "before"
    assert ((tmp_path / "sweep.jsonl").read_text() == "before") == (name == "sweep.jsonl.partial")


def results_of(*runs: tuple[dict[str, Any], float]) -> list[Result]:
    """Runs whose loss falls to the given one."""
    return ranked(
        [
            Result(Run(Path(f"r/{n}"), (), values), 0, values, [Evaluation(1, loss + 1, 1.0), Evaluation(2, loss, 1.0)])
            for n, (values, loss) in enumerate(runs)
        ]
    )


def drawn(results: list[Result], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    figures = []
    save = Figure.savefig

    def keep(self: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    assert draw_sweep(results, folder / "sweep.png", "月滿西樓")
    assert [path.name for path in folder.iterdir()] == ["sweep.png"]
    return figures[0]


def test_one_option_is_drawn_on_the_axis_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = results_of(*(({"optimizer.lr": lr}, abs(math.log10(lr) + 3) + 1) for lr in (1e-2, 1e-4, 1e-3)))
    curves, best = drawn(results, tmp_path, monkeypatch).axes
    names = [entry.get_text() for entry in curves.get_legend().get_texts()]
    assert names[0] == "optimizer.lr=0.001: 1.0000"
    assert len(names) == 3
    assert (best.get_xscale(), best.get_yscale(), best.get_xlabel()) == ("log", "linear", "optimizer.lr")
    (line,) = best.get_lines()
    assert list(line.get_xdata()) == [1e-4, 1e-3, 1e-2]
    assert list(line.get_ydata()) == pytest.approx([2, 1, 2])


@pytest.mark.parametrize(
    ("values", "panels", "lines"),
    [
        ([{"x": 1}, {"x": 5}], 2, 1),
        ([{"x": 1}], 1, 0),
        ([{"x": "a"}, {"x": "b"}], 1, 0),
        ([{"x": 1}, {"x": "auto"}], 1, 0),
        ([{"x": True}, {"x": False}], 1, 0),
        ([{"x": 1, "y": y} for y in range(3)], 2, 1),  # y has more values, so it is the axis
        ([{"x": x, "y": y} for x in range(3) for y in "ab"], 2, 2),
        ([{"x": x, "y": x * x} for x in range(20)], 3, 1),  # points, and the bar of their colours
        ([{"x": x, "y": str(x)} for x in range(20)], 2, 20),
        ([{"x": 1, "y": 2, "z": 3}, {"x": 2, "y": 2, "z": 4}], 1, 0),
    ],
)
def test_what_is_drawn(
    values: list[dict[str, Any]], panels: int, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = results_of(*((each, 2.0 + n) for n, each in enumerate(values)))
    axes = drawn(results, tmp_path, monkeypatch).axes
    assert len(axes) == panels
    assert len(axes[0].get_lines()) == len(values)
    assert len(axes[0].get_legend().get_texts()) == min(len(values), 10)
    if panels > 1:
        assert len(axes[1].get_lines()) == lines


def test_a_run_that_diverged_does_not_flatten_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = drawn(results_of(({"x": 1}, 2.0), ({"x": 2}, 1e9)), tmp_path, monkeypatch).axes
    assert [each.get_yscale() for each in axes] == ["log", "log"]

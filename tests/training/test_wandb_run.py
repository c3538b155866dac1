"""Weights & Biases that fails, with a stand-in for the library. tests/faults has the real one and a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpt.config import RunConfig
from gpt.options import UserError
from gpt.training import report
from gpt.training.feed import Feed
from gpt.training.run import train
from gpt.training.trainer import Trainer

from .test_finite import poison_sequence

MakeConfig = Callable[..., RunConfig]


class Library:
    """What `wandb_run.py` uses of wandb; `fails` names the calls that raise, and since which step."""

    def __init__(self, folder: Path, **fails: Any) -> None:
        self.fails, self.steps, self.asked, self.calls = fails, [], {}, []
        self.run = SimpleNamespace(id="leaf", dir=str(folder / "my run" / "files"), log=self.log, finish=self.finish)
        self.Settings = dict

    def init(self, **asked: Any) -> Any:
        self.asked, begun = asked, bool(self.calls)
        if error := self.fails.get("second init" if begun else "init"):
            raise error
        return self.run

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(step)
        if step >= self.fails.get("log", 99):
            raise ConnectionError("its process\nis gone")
        self.steps.append(step)

    def finish(self) -> None:
        self.calls.append("finish")
        if self.fails.get("finish"):
            raise TimeoutError

    def teardown(self) -> None:
        self.calls.append("teardown")
        raise ConnectionError("its process is gone")


def online(make_config: MakeConfig) -> RunConfig:
    return make_config(wandb={"mode": "online"}, train={"log_every": 1, "eval_every": 12})


@pytest.mark.parametrize("error", [TimeoutError("no answer"), ValueError("WANDB_X"), RuntimeError("api key")])
def test_a_start_that_fails_is_a_refusal(
    error: Exception, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(tmp_path, init=error)
    monkeypatch.setitem(sys.modules, "wandb", library)
    with pytest.raises(UserError, match=f"^wandb.mode=online: .*{error}; use wandb.mode=offline"):
        train(online(make_config))
    assert not (tmp_path / "run").exists()
    assert library.asked["settings"] == {"init_timeout": 30, "finish_timeout": 60, "finish_timeout_raises": True}


def test_a_refused_continuation_changes_no_line(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(make_config(train={"max_steps": 4}))
    lines = (tmp_path / "run/metrics.jsonl").read_text() + '{"step": 5}\n'
    (tmp_path / "run/metrics.jsonl").write_text(lines)
    monkeypatch.setitem(sys.modules, "wandb", Library(tmp_path, init=TimeoutError()))
    with pytest.raises(UserError, match=r"^wandb.mode=online: .*TimeoutError"):
        train(online(make_config))
    assert (tmp_path / "run/metrics.jsonl").read_text() == lines


def test_the_users_own_limits_count(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "300")
    train(online(make_config))
    assert library.asked["settings"] == {"finish_timeout": 60, "finish_timeout_raises": True}
    assert library.calls == [*range(1, 13), 12, "finish"]


def test_without_the_library_nothing_begins(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises ImportError
    with pytest.raises(UserError, match=r"^wandb.mode=online: wandb cannot be imported: .*pip install"):
        train(online(make_config))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fails", [{"log": 5}, {"finish": True}, {"log": 5, "finish": True}])
def test_what_fails_later_is_said_once_and_ends_nothing(
    fails: dict[str, Any],
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    library = Library(tmp_path, **fails)
    monkeypatch.setitem(sys.modules, "wandb", library)
    assert train(online(make_config)) == 0
    said = capfd.readouterr().err
    assert said.count("Weights & Biases has failed at step 5 and gets no more") == ("log" in fails)
    assert said.count("Weights & Biases has not received all of the run: TimeoutError") == ("finish" in fails)
    assert f"wandb sync --include-online '{tmp_path}/my run'\n" in said
    logged = [*range(1, 6)] if "log" in fails else [*range(1, 13), 12]
    assert library.calls == [*logged, "finish", "teardown"]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(1, 13), 12]


@pytest.mark.parametrize(
    ("where", "name"),
    [(Trainer, "update"), (report, "draw_curves"), (Feed, "close")],
    ids=["a step", "the last picture", "the batches"],
)
def test_a_second_ctrl_c_waits_for_no_server(
    where: object,
    name: str,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Also one that comes at the end."""
    library = Library(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.setattr(where, name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(online(make_config))
    assert "finish" not in library.calls
    assert f"wandb sync --include-online '{tmp_path}/my run'\n" in capfd.readouterr().err


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_after_a_rollback_it_refuses_nothing(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    library = Library(tmp_path, **{"second init": TimeoutError("no answer")})
    monkeypatch.setitem(sys.modules, "wandb", library)
    train_options = {"max_steps": 9, "eval_every": 3, "log_every": 1, "sample_tokens": 0, "on_nonfinite": "rollback"}
    config = make_config(wandb={"mode": "online"}, train=train_options)
    poison_sequence(monkeypatch, config, 4 * 4 + 2)
    assert train(config) == 0
    said = capfd.readouterr().err
    assert "Rollback 1 of at most 3" in said
    assert "wandb.mode=online: Weights & Biases cannot begin the run: no answer. The run goes on without" in said
    assert library.calls == [1, 2, 3, 3, 4, "finish"]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]

"""Folders that another host makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt.options import UserError
from gpt.text import files
from gpt.text.files import appears, find_files


def test_a_folder_may_come_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over NFS, for a while after another host has made it."""
    folder = tmp_path / "run" / "checkpoints"
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            folder.mkdir(parents=True)

    monkeypatch.setattr(files.time, "sleep", wait)
    assert appears(folder)
    assert len(waits) == 3
    assert appears(folder)
    assert len(waits) == 3


def test_a_folder_may_never_come(tmp_path: Path) -> None:
    assert not appears(tmp_path / "run", within=0.2)
    (tmp_path / "run").touch()
    assert not appears(tmp_path / "run", within=0)


@pytest.mark.parametrize(("pattern", "hint"), [("a.txt,b.txt", True), ("a.txt notes/b.md", True), ("c.txt", False)])
def test_several_files_in_one_name_are_told_how_they_are_written(pattern: str, hint: bool) -> None:
    with pytest.raises(UserError) as caught:
        find_files([pattern])
    assert ("several are written data.files='[one.txt,notes/*.txt]'" in str(caught.value)) == hint

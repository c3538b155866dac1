"""Signals that ask a process to save and end, noted while something is at work that can."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, TypeVar

# Ctrl-C, pre-emption, and how SLURM may announce that; Windows has not all signals of POSIX.
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
UNREAD = getattr(signal, "SIGPIPE", signal.SIGTERM)  # noted where nobody reads what is said any more
S = TypeVar("S", bound="NotedSignals")


class NotedSignals:
    """While entered, a signal calls `note` instead of what it did before; the first one is `received`."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.previous: dict[signal.Signals, Any] = {}

    def __enter__(self: S) -> S:
        for number in SIGNALS:
            self.previous[number] = signal.signal(number, self.note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number)

    @property
    def exit_status(self) -> int:
        """128 plus the signal's number, as shells report it; 0 where there was none."""
        return 0 if self.received is None else 128 + self.received


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an exception, as behind the ImportError of a library that was just being loaded."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None

"""Ctrl-C, SIGTERM and a step that was named, as a request that the loop honours between two steps."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """While entered, the first SIGINT or SIGTERM is only noted in `received`; a second SIGINT stops at once.

    `stop_at`: the step after which to stop as if a signal had come, or None.
    """

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.received: signal.Signals | None = None
        self.previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self.note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(
            2, b"\nStopping after this step and saving; Ctrl-C again stops at once.\n"
        )  # print may not be reentered

    def stop(self, step: int) -> bool:
        """Whether to stop after this step."""
        return self.received is not None or (self.stop_at is not None and step >= self.stop_at)

    @property
    def exit_status(self) -> int:
        """128 plus the signal's number, as shells report it; 0 where there was none."""
        return 0 if self.received is None else 128 + self.received

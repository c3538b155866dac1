"""Ctrl-C, SIGTERM and a step that was named, as a request that the loop honours between two steps."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from gpt.options import silence
from gpt.signals import UNREAD, NotedSignals
from gpt.training.parallel.ranks import Ranks

STOPPING = b"\nStopping after this step and saving; Ctrl-C again stops at once.\n"

ECHO = 2.0  # seconds for which torchrun's own Ctrl-C may follow that of the terminal


class Interrupts(NotedSignals):
    """While entered, the first signal is only noted in `received`; a second SIGINT stops at once.

    Of several processes, all stop after the same step, whichever got the signal: what each has received goes round
    while the next step is computed, so that nobody waits for it.
    `stop_at`: the step after which to stop as if a signal had come, or None.
    """

    def __init__(self, stop_at: int | None = None, ranks: Ranks | None = None) -> None:
        super().__init__()
        self.stop_at, self.ranks = stop_at, ranks or Ranks()
        self.going_round: Callable[[], int] = lambda: 0

    def note(self, number: int, frame: FrameType | None) -> None:
        now, first = time.monotonic(), self.received in (None, UNREAD)
        if first:
            self.received, self.since = signal.Signals(number), now  # before all else, which may fail
            if self.ranks.main or self.ranks.world == 1:
                self.announce()
        elif number == signal.SIGINT and (self.ranks.world == 1 or now - self.since > ECHO):
            signal.default_int_handler(number, frame)

    def announce(self) -> None:
        try:
            os.write(2, STOPPING)  # print may not be reentered
        except BrokenPipeError:  # the terminal sends Ctrl-C also to the `tee` behind `2>&1 |`, which ends before
            silence(2)
        except OSError:
            pass

    def reader_went_away(self) -> None:
        """Stop as after a signal, where nobody reads standard error any more."""
        silence(2)
        self.note(UNREAD, None)

    def stop(self, step: int) -> bool:
        """Whether to stop after this step. All processes must ask after each."""
        if self.ranks.world > 1:
            agreed, self.going_round = self.going_round(), self.ranks.begin_largest(self.received or 0)
            if agreed and self.received is None:
                self.note(agreed, None)
            return bool(agreed) or (self.stop_at is not None and step >= self.stop_at)
        return self.received is not None or (self.stop_at is not None and step >= self.stop_at)

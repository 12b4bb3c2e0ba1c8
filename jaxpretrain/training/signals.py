"""Stop requests: SIGTERM from a scheduler, Ctrl-C from a person."""

import signal
from types import FrameType
from typing import Any


class Signals:
    """Within the context, SIGTERM and Ctrl-C are noted instead of ending the program; a second Ctrl-C ends it at once.

    Attributes:
        received: name of the signal, or None.
        exit_code: 128 + its number, as shells report it.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.exit_code = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received, self.exit_code = signal.Signals(number).name, 128 + number

"""Asking a worker to stop: it saves its state at the end of the segment that it is in, and ends; if that takes too long, it just ends."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Stopped(Exception):
    """Training stopped because somebody asked; the state is saved."""


@dataclass
class Stop:
    """A request to stop, made by another thread or a signal handler and seen by the training loop."""

    requested: bool = False
    _training: bool = False

    def soon(self) -> None:
        """Let the training loop save and end, whatever time that takes."""
        self.requested = True

    def request(self, *, grace: float) -> None:
        """Let the training loop save and end, for `grace` seconds; with nothing to save, end the process now."""
        self.requested = True
        if not self._training:
            os._exit(0)
        timer = threading.Timer(grace, os._exit, [0])  # whatever is unpublished is done again by the next worker
        timer.daemon = True
        timer.start()

    @contextmanager
    def during_training(self) -> Iterator[None]:
        """Mark the block in which there is something to save."""
        self._training = True
        try:
            yield
        finally:
            self._training = False

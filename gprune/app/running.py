"""Runs a comparison in a thread of its own, so that the page can show progress and stop it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator

from PIL import Image

from gprune.ask.comparison import Comparison, SharedModel
from gprune.ask.links import ComparisonSettings
from gprune.ask.progress import Cancelled, Progress

# Seconds between two reports of progress; a closed iterator stops after at most as long.
TICK = 0.3


# Over 40 lines: two short functions share its queue and its flag.
def run_comparison(
    shared: SharedModel, settings: ComparisonSettings, image: Image.Image | None, timed: bool
) -> Generator[Comparison | Progress, None, None]:
    """Yields the comparison after each method, and the progress every `TICK` seconds.

    Closing the iterator stops the model before its next layer. Gradio closes it when the page is
    left.

    Args:
        shared: answers the question.
        settings: see `SharedModel.compare`.
        image: see `SharedModel.compare`.
        timed: see `SharedModel.compare`.

    Raises:
        Exception: what `SharedModel.compare` raises.
    """
    found: queue.SimpleQueue[Comparison | Exception | None] = queue.SimpleQueue()
    closed = threading.Event()
    latest = Progress(None, 0, len(settings.methods) + 1)

    def watch(progress: Progress) -> None:
        nonlocal latest
        if closed.is_set():
            raise Cancelled
        latest = progress

    def compare() -> None:
        try:
            for comparison in shared.compare(settings, image, timed, watch):
                found.put(comparison)
            found.put(None)
        except Exception as error:
            found.put(error)

    # A daemon: Ctrl+C ends the command in the middle of an answer too.
    threading.Thread(target=compare, name="gprune-comparison", daemon=True).start()
    try:
        while True:
            try:
                item = found.get(timeout=TICK)
            except queue.Empty:
                yield latest
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        closed.set()


class StoppedRuns:
    """The tickets of runs that visitors do not want any more; the oldest are forgotten.

    Gradio could cancel events itself, but version 6.31 then shows an error in the browser, whose
    code does not expect the empty answer of a cancelled generator, and late answers can follow.
    """

    # Far more than can wait in the queue.
    MOST = 1024

    def __init__(self) -> None:
        self._keeps_answers: dict[str, bool] = {}

    def stop(self, ticket: str, keep_answers: bool) -> None:
        """Marks a run, which may be running, waiting or finished.

        Args:
            ticket: the run's; an empty one stands for none.
            keep_answers: whether the answers that it has given stay on the page.
        """
        if ticket:
            self._keeps_answers[ticket] = keep_answers
        while len(self._keeps_answers) > self.MOST:
            self._keeps_answers.pop(next(iter(self._keeps_answers)))

    def __contains__(self, ticket: str) -> bool:
        return ticket in self._keeps_answers

    def keeps_answers(self, ticket: str) -> bool:
        """Tells whether the answers of a stopped run stay."""
        return self._keeps_answers[ticket]

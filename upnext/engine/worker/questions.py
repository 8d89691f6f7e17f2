"""What a fetcher has to find out, as one set of flags: other parts ask, a turn of the fetcher takes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from enum import Enum


class Question(Enum):
    """In the order in which a turn takes them."""

    WAKE = "something was asked since the turn began: its wait ends at once"
    GROUP = "was the group of a stream removed? Make it anew"
    PLANS = "which tasks are paused or limited? Until that is known the waiting read may take too much"
    PENDING = "does the broker count something as ours that never came here? Hand it back"
    JOBS = "are there jobs that the waiting read doesn't see?"
    EVERY_LANE = "are there some in any lane of any task? Without it the next tasks in turn are looked at"
    READY = "does the host know that the first fetch is out? Asked once, at the start"
    ROOM = "has the executor room? The wait for it ends when it has"

    __hash__ = object.__hash__  # of identity, in C: a turn looks into the set a dozen times


class OpenQuestions:
    """Belongs to one loop."""

    __slots__ = ("_open",)

    def __init__(self, *questions: Question) -> None:
        self._open = set(questions)

    def __contains__(self, question: Question) -> bool:
        return question in self._open

    def ask(self, *questions: Question) -> None:
        """Open them; one that is open stays so."""
        self._open.update(questions)

    def take(self, question: Question) -> bool:
        """Close it. -> whether it was open."""
        if question in self._open:
            self._open.discard(question)
            return True
        return False

    @contextmanager
    def answering(self, question: Question) -> Generator[None]:
        """Close it while the body finds the answer: asked meanwhile, or when the body fails, it is open again."""
        self._open.discard(question)
        try:
            yield
        except BaseException:
            self._open.add(question)
            raise

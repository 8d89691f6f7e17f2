"""What a fetcher decides without a broker: what is open, and how many jobs it asks for."""

from __future__ import annotations

import pytest

from upnext.core.batches import CALL_BYTES
from upnext.core.fetchbudget import MOST_BYTES, MOST_JOBS, FetchBudget, held_too_long
from upnext.engine.worker.questions import OpenQuestions, Question


def test_a_question_is_taken_once() -> None:
    questions = OpenQuestions(Question.READY)
    assert questions.take(Question.READY)
    assert not questions.take(Question.READY)
    questions.ask(Question.JOBS, Question.PLANS)
    questions.ask(Question.JOBS)
    assert questions.take(Question.JOBS)
    assert Question.PLANS in questions
    assert Question.JOBS not in questions


def test_a_question_asked_while_it_is_answered_stays_open() -> None:
    questions = OpenQuestions(Question.PLANS)
    with questions.answering(Question.PLANS):
        assert Question.PLANS not in questions
        questions.ask(Question.PLANS)
    assert Question.PLANS in questions
    with questions.answering(Question.PLANS):
        pass
    assert Question.PLANS not in questions


def test_a_question_whose_answer_failed_is_open_again() -> None:
    questions = OpenQuestions(Question.GROUP)
    with pytest.raises(OSError, match="gone"), questions.answering(Question.GROUP):
        raise OSError("gone")
    assert Question.GROUP in questions


def of_small_jobs(prefetch: int | None = None) -> FetchBudget:
    """A budget that has seen small jobs only."""
    budget = FetchBudget(prefetch, 0.0)
    for _ in range(10):
        budget.took(4, 80)
    return budget


def after_work(prefetch: int | None = None, *, per_s: int = 1000) -> FetchBudget:
    """A budget that has seen `per_s` jobs end in its first second."""
    budget = of_small_jobs(prefetch)
    budget.jobs(1.0, finished=per_s, room=0, held=0)
    return budget


def test_an_idle_worker_asks_for_what_can_start() -> None:
    assert of_small_jobs().jobs(0.0, finished=0, room=7, held=0) == 7


def test_jobs_count_as_large_until_some_were_seen() -> None:
    budget = FetchBudget(None, 0.0)
    most = [budget.jobs(0.0, finished=0, room=50_000, held=0)]
    for _ in range(5):
        budget.took(4, 80)
        most.append(budget.jobs(0.0, finished=0, room=50_000, held=0))
    assert most[0] == MOST_BYTES // CALL_BYTES
    assert most == sorted(most)
    assert most[-1] == MOST_JOBS


def test_what_is_held_counts_against_the_bytes() -> None:
    assert FetchBudget(None, 0.0).jobs(0.0, finished=0, room=100, held=2) == MOST_BYTES // CALL_BYTES - 2


def test_the_adapted_prefetch_covers_a_twentieth_of_a_second() -> None:
    assert after_work(per_s=1000).jobs(1.0, finished=1000, room=3, held=0) == 53


def test_a_fixed_prefetch_is_held_whatever_the_rate() -> None:
    assert after_work(4, per_s=100_000).jobs(1.0, finished=100_000, room=3, held=0) == 7
    assert after_work(0).jobs(1.0, finished=1000, room=0, held=0) == 0


def test_no_small_fetches_while_there_is_work() -> None:
    budget = after_work(per_s=2000)  # 100 ahead
    assert budget.jobs(1.0, finished=2000, room=-80, held=80) == 0
    assert budget.jobs(1.0, finished=2000, room=-75, held=75) == 25
    assert budget.jobs(1.0, finished=2000, room=-80, held=0) == 20


def test_what_had_to_be_handed_back_is_not_fetched_ahead_before_something_ends() -> None:
    budget = after_work(8)
    budget.stalled(1000)
    assert budget.jobs(1.0, finished=1000, room=2, held=0) == 2
    assert budget.jobs(1.0, finished=1001, room=2, held=0) == 10


def test_fat_jobs_are_fetched_by_their_bytes() -> None:
    budget = FetchBudget(None, 0.0)
    for _ in range(200):
        budget.took(1, 1024 * 1024)
    jobs = budget.jobs(0.0, finished=0, room=1000, held=0)
    assert 1 <= jobs * 1024 * 1024 <= MOST_BYTES


def test_one_fetch_takes_a_thousand_at_most() -> None:
    assert of_small_jobs().jobs(0.0, finished=0, room=50_000, held=0) == MOST_JOBS


def test_a_held_job_goes_back_sooner_or_later_however_often_it_did() -> None:
    assert [held_too_long(held_s, handed_back=False) for held_s in (0.05, 0.1, 1.0)] == [False, True, True]
    assert [held_too_long(held_s, handed_back=True) for held_s in (0.1, 0.9, 1.0)] == [False, False, True]

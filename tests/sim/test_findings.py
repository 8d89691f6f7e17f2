"""What the simulated kernel found, each as the few steps that it takes."""

from __future__ import annotations

from dataclasses import replace

from tests.support.sim_fleet import Run, Script, Step, play
from tests.support.sim_programs import Code

GOOD = Code(1, "works", 0.1)


def life(
    *steps: tuple[float, str, Code],
    workers: int = 2,
    end: str = "settle",
    preload: bool = True,
    seed: int = 7,
    code: Code = GOOD,
) -> Run:
    planned = tuple(Step(after_s, what, 3 if what == "scale" else 0, code) for after_s, what, code in steps)
    return play(seed, plan=Script("planned", workers, preload, 0.0, code, planned, end))


def test_a_reload_begins_where_the_daemon_can_not_start_without_one() -> None:
    """Its template is lost before it was ready, and other code is on disk: the reload waited for the start, the start for the reload."""
    run = life((0.12, "kill_template", Code(2)))
    assert run.failure is None, run.failure
    assert any("generation 1 has no template" in line for line in run.lines)


def test_a_reload_ends_a_crash_loop_before_the_start() -> None:
    """The crash loop gave its slots up because a reload was to come, and that waited for the start."""
    run = life(
        (0.05, "write_code", Code(2, starting="dies", import_s=0.1)),
        (0.1, "reload", Code(2, starting="dies", import_s=0.1)),
        (40.0, "status", GOOD),
        preload=False,
    )
    assert run.failure is None, run.failure


def test_a_reload_ends_though_a_newer_one_is_live_before_its_old_children_have_left() -> None:
    """Every child of the newer generation counted as one that had to leave."""
    for seed in range(5):
        run = life((6.0, "reload", Code(2, "works", 0.1)), (4.0, "reload", Code(3, "works", 0.1)), workers=4, seed=seed)
        assert run.failure is None, run.failure


def test_a_stop_that_is_asked_for_at_the_very_end_has_an_end() -> None:
    run = life((0.0, "drain_exit", GOOD), (0.005, "status", GOOD), end="now")
    assert run.failure is None, run.failure
    assert any("stop: stopped" in line for line in run.lines)


def test_a_drain_ends_though_a_child_that_drains_loses_its_channel() -> None:
    """It had been asked, and could not answer; without a template, no successor came that it could have made room for."""
    run = life((1.1, "kill_template", Code(2)), (0.05, "drain_exit", GOOD), (0.0, "cut_worker", GOOD))
    assert run.failure is None, run.failure


def test_a_scale_of_a_service_without_workers_has_an_end() -> None:
    """It waited for workers that no code declares."""
    alone = replace(GOOD, apis=(("front", 1),), has_workers=False)
    run = life((3.0, "scale", alone), code=alone)
    assert run.failure is None, run.failure
    assert any("scale: 0 of 0 workers ready" in line for line in run.lines)


def test_an_api_serves_on_while_its_template_is_replaced() -> None:
    """The new template had declared nothing yet: no process was known to serve, and connects were refused."""
    code = replace(GOOD, apis=(("front", 2),))
    run = life(
        (3.0, "write_code", replace(code, importing="hangs")),
        (0.0, "kill_template", code),
        (12.0, "status", code),
        code=code,
    )
    assert run.failure is None, run.failure
    assert not any(line.endswith(" refuses") for line in run.lines)


def test_a_late_answer_to_a_drain_says_nothing_of_a_worker_that_was_resumed_since() -> None:
    """A reload that was given up had drained it; in the next one it fetched on while newer code took requests."""
    code = replace(GOOD, apis=(("front", 1),))
    for seed in range(6):
        run = life(
            (6.0, "reload", replace(code, version=2)),
            (2.001, "abort", code),
            (3.0, "reload", replace(code, version=3)),
            workers=1,
            seed=seed,
            code=code,
        )
        assert run.failure is None, run.failure

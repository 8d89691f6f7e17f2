"""Small line graphs, drawn by the server as SVG. Pure."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT, PAD = 240, 36, 2


def points(values: Sequence[float | None], width: int = WIDTH, height: int = HEIGHT) -> list[list[tuple[float, float]]]:
    """Runs of connected points, oldest left; None breaks the line. The tallest value touches the top, 0 is the bottom."""
    most = max((value for value in values if value is not None), default=0) or 1
    step = (width - 2 * PAD) / max(1, len(values) - 1)
    runs: list[list[tuple[float, float]]] = [[]]
    for at, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            y = height - PAD - max(0.0, value) / most * (height - 2 * PAD)
            runs[-1].append((round(PAD + at * step, 1), round(y, 1)))
    return [run for run in runs if run]


def sparkline(values: Sequence[float | None], label: str, *, tone: str = "plain") -> Markup:
    """As `drawn`; a graph that was drawn lately is not drawn again."""
    return drawn(tuple(values), label, tone)


@functools.lru_cache(256)
def drawn(values: tuple[float | None, ...], label: str, tone: str) -> Markup:
    """An SVG with a text for those who don't see it. `tone` names a CSS class: plain, good, bad."""
    lines = Markup("").join(
        Markup('<polyline points="{}"/>').format(" ".join(f"{x},{y}" for x, y in run))
        if len(run) > 1
        else Markup('<circle cx="{}" cy="{}" r="1.5"/>').format(*run[0])
        for run in points(values)
    )
    return Markup(
        '<svg class="spark {}" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(tone, WIDTH, HEIGHT, label, lines)

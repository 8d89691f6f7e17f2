"""Public names whose feature is still to come: they can be imported, and say so when they are used."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NoReturn

from upnext.errors import UsageError


class ArtifactType(StrEnum):
    """What an artifact holds."""

    TEXT = "text"
    JSON = "json"
    PNG = "image/png"
    JPEG = "image/jpeg"
    WEBP = "image/webp"
    GIF = "image/gif"
    SVG = "image/svg"
    PDF = "file/pdf"
    CSV = "file/csv"
    XML = "file/xml"


async def create_artifact(*_args: Any, **_kwargs: Any) -> NoReturn:
    """Not available yet: raises UsageError."""
    raise UsageError(_NO_ARTIFACTS)


def create_artifact_sync(*_args: Any, **_kwargs: Any) -> NoReturn:
    """Not available yet: raises UsageError."""
    raise UsageError(_NO_ARTIFACTS)


_NO_ARTIFACTS = "artifacts are not available yet: store the file yourself and return its address from the task"

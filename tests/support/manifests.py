"""The manifests of deploy/kubernetes, as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"


def manifests() -> dict[str, dict[str, Any]]:
    """`KIND/NAME` -> manifest, of all files."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(FOLDER.rglob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text()):
            name = f"{one['kind']}/{one['metadata']['name']}"
            assert name not in found, f"{name} is there twice"
            found[name] = one
    return found


def pod(name: str) -> dict[str, Any]:
    """What a Deployment's pods are."""
    return manifests()[f"Deployment/{name}"]["spec"]["template"]["spec"]


def container(name: str) -> dict[str, Any]:
    """The one container of them."""
    [found] = pod(name)["containers"]
    return found

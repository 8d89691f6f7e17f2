"""Prints pip constraints: each requirement of pyproject.toml, and of its extras for users, at the lowest version that it allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
TOOLS = "dev"
"""The extra that no user installs."""


def main() -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for name in extras if name != TOOLS for line in extras[name])]
    for line in dict.fromkeys(wanted):
        match = re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\w.]+)", line)
        assert match is not None, f"{line}: a requirement is NAME>=VERSION"
        print(f"{match[1]}=={match[2]}")


if __name__ == "__main__":
    main()

"""`python -m upnext.cli.next_code`: a process of `upnext run --reload`. It imports UpNext, and waits for the change that it is to run.

No setting is read before that: `.env` and pyproject.toml may change with the code.
"""

from __future__ import annotations

import importlib
from contextlib import suppress

from upnext.cli.main import main
from upnext.cli.run import of_parent

_AHEAD = ("uvloop", "upnext.running")
_AHEAD_OF_APIS = ("fastapi", "upnext.api_server")


def _import_ahead(*, apis: bool) -> None:
    """What the services will need, whatever they are."""
    with suppress(ImportError):  # it is reported where it is needed
        for module in (*_AHEAD, *(_AHEAD_OF_APIS if apis else ())):
            importlib.import_module(module)


if __name__ == "__main__":
    _, gate = of_parent()
    _import_ahead(apis=gate is not None and gate.apis)
    if gate is None or gate.may_import():
        main()

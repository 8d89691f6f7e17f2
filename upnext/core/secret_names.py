"""How secrets and the places where they are looked for are named; no value is read here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from upnext.errors import UsageError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")
VARIABLE = "UPNEXT_SECRET_"
DIRECTORY_VARIABLE, EXEC_VARIABLE = "UPNEXT_SECRETS_DIR", "UPNEXT_SECRETS_EXEC"
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"


def checked_name(what: str, name: object) -> str:
    """Raises UsageError for a name that can't be that of a file or of a variable."""
    if not isinstance(name, str) or NAME.match(name) is None:
        raise UsageError(
            f"{what}: a secret's name is 1 to 64 letters, digits, '_', '.' or '-' (none of the last two first), not {name!r:.80}"
        )
    return name


def variable(name: str) -> str:
    """The environment variable of a secret: UPNEXT_SECRET_STRIPE_KEY for stripe_key."""
    return VARIABLE + re.sub(r"[^A-Z0-9]", "_", name.upper())


def without(env: Mapping[str, str]) -> dict[str, str]:
    """An environment for processes that have no business with secrets: neither values nor ways to get them."""
    ways = (CREDENTIALS_VARIABLE, DIRECTORY_VARIABLE, EXEC_VARIABLE)
    return {name: value for name, value in env.items() if not name.startswith(VARIABLE) and name not in ways}

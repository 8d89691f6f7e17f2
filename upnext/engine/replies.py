"""What the broker's error replies mean to us."""

from __future__ import annotations

from upnext.errors import (
    BrokerFullError,
    BrokerRefusedError,
    BrokerUnavailableError,
    QueueError,
)


class ReplyError(QueueError):
    """An error reply that has no meaning of its own here. `code` is its first word."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


class NoScriptError(ReplyError):
    """The server doesn't have this script (new, restarted, flushed): send its text."""


class EpochError(ReplyError):
    """The data set is another one than the one we registered with (FLUSHALL, a regressed failover): register anew."""


class ReapedError(ReplyError):
    """Our consumer was declared dead: take a new name and register again."""


class WrongServerError(BrokerUnavailableError):
    """Not the server to ask (a replica, by now): nothing was done, and a fresh look-up may find the right one."""


class MovedError(WrongServerError):
    """The slot lives on another node of a cluster. `address` is host, port; the host may be empty: the same as asked."""

    def __init__(self, text: str) -> None:
        super().__init__(f"the broker says: {text}")
        host, _, port = text.rsplit(maxsplit=1)[-1].rpartition(":")
        self.address = (host, int(port))


class LostReplyError(BrokerUnavailableError):
    """The connection broke after sending and before the reply: it may or may not have been done."""


_OWN: dict[str, type[ReplyError]] = {
    "NOSCRIPT": NoScriptError,
    "EPOCH": EpochError,
    "REAPED": ReapedError,
}
_REFUSED = {"NOAUTH", "WRONGPASS", "NOPERM", "DENIED"}
_LOGIN_HINT = "check the user and the password in its URL"
_HINTS = {"NOPERM": "docs/redis.md lists what its user has to be allowed"}
# ASK and TRYAGAIN: the slot is being moved key by key, so for now no node can run a script over all of its keys
_AWAY = {"ASK", "LOADING", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "NOREPLICAS", "MISCONF", "UNBLOCKED"}


def not_redis(where: str, error: object) -> BrokerRefusedError:
    """For whatever answers at `where` in another protocol."""
    return BrokerRefusedError(f"what answers at {where} is no Redis ({error})")


def refused(error: ReplyError) -> BrokerRefusedError:
    """For an error reply to our introduction, which nothing will mend."""
    return BrokerRefusedError(f"the broker refuses: {error}")


def read_error(text: str) -> QueueError:
    """The exception for an error reply, without the leading `-`."""
    code = text.partition(" ")[0]
    # an error raised inside a script is wrapped by some servers: `ERR Error running script ... @user_script: OOM ...`
    if code in _OWN:
        return _OWN[code](text)
    if code == "MOVED":
        return MovedError(text)
    if code in ("READONLY", "MASTERDOWN"):
        return WrongServerError(f"the broker can't serve now: {text}")
    if code in _REFUSED or "invalid password" in text or "Client sent AUTH" in text:
        return BrokerRefusedError(f"the broker refuses: {text.rstrip('.')}; {_HINTS.get(code, _LOGIN_HINT)}")
    if code in _AWAY:
        return BrokerUnavailableError(f"the broker can't serve now: {text}")
    if code == "OOM" or "maxmemory" in text:
        return BrokerFullError(f"the broker is full: {text}")
    return ReplyError(text)

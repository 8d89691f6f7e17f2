"""What the broker's error replies mean to us."""

from __future__ import annotations

from enum import Enum

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
    """Not the server to ask (a replica, or cut off from its cluster): nothing was done, and another one may serve."""


class MovedError(WrongServerError):
    """The slot lives on another node of a cluster. `address` is host, port; the host may be empty: the same as asked."""

    def __init__(self, text: str) -> None:
        super().__init__(f"the broker says: {text}")
        host, _, port = text.rsplit(maxsplit=1)[-1].rpartition(":")
        self.address = (host, int(port))


class LostReplyError(BrokerUnavailableError):
    """The connection broke after sending and before the reply: it may or may not have been done."""


class Remedy(Enum):
    """What a client does about an error, asynchronous and blocking ones alike."""

    RETRY_HERE = "retry here"
    """The server is the right one and will serve again: the same connection is kept."""
    LOOK_AGAIN = "look again"
    """Another server may serve by now: the connection goes, and the others are asked first."""
    FOLLOW = "follow"
    """The error says where to ask: asked there at once."""
    GIVE_UP = "give up"
    """Asking again doesn't help: it is the caller's."""


REMEDIES: dict[str, Remedy] = {
    "MOVED": Remedy.FOLLOW,
    # the slot is being moved key by key, so for now no node can run a script over all of its keys
    "ASK": Remedy.RETRY_HERE,
    "TRYAGAIN": Remedy.RETRY_HERE,
    "LOADING": Remedy.RETRY_HERE,
    "BUSY": Remedy.RETRY_HERE,
    "MISCONF": Remedy.RETRY_HERE,
    "CLUSTERDOWN": Remedy.LOOK_AGAIN,
    "READONLY": Remedy.LOOK_AGAIN,
    "MASTERDOWN": Remedy.LOOK_AGAIN,
    "NOREPLICAS": Remedy.LOOK_AGAIN,
    "UNBLOCKED": Remedy.LOOK_AGAIN,
    "NOAUTH": Remedy.GIVE_UP,
    "WRONGPASS": Remedy.GIVE_UP,
    "NOPERM": Remedy.GIVE_UP,
    "DENIED": Remedy.GIVE_UP,
    "OOM": Remedy.GIVE_UP,
    "NOSCRIPT": Remedy.GIVE_UP,
    "EPOCH": Remedy.GIVE_UP,
    "REAPED": Remedy.GIVE_UP,
}
"""By the first word of an error reply. A word that is not here is the caller's. docs/redis.md has the table for readers."""


class NoReply(Enum):
    """How there can be no reply at all."""

    UNREACHABLE = "no connection can be made"
    CUT = "the connection broke"
    SILENT = "nothing comes for long"


REMEDIES_WITHOUT_REPLY: dict[NoReply, Remedy] = {
    NoReply.UNREACHABLE: Remedy.LOOK_AGAIN,
    NoReply.CUT: Remedy.RETRY_HERE,
    NoReply.SILENT: Remedy.LOOK_AGAIN,
}

_OWN: dict[str, type[ReplyError]] = {
    "NOSCRIPT": NoScriptError,
    "EPOCH": EpochError,
    "REAPED": ReapedError,
}
_REFUSED = {"NOAUTH", "WRONGPASS", "NOPERM", "DENIED"}
_LOGIN_HINT = "check the user and the password in its URL"
_HINTS = {"NOPERM": "docs/redis.md lists what its user has to be allowed"}


def not_redis(where: str, error: object) -> BrokerRefusedError:
    """For whatever answers at `where` in another protocol."""
    return BrokerRefusedError(f"what answers at {where} is not a Redis server ({error})")


def refused(error: ReplyError) -> BrokerRefusedError:
    """For an error reply to our introduction, which nothing will mend."""
    return BrokerRefusedError(f"the broker refuses: {error}")


def read_error(text: str) -> QueueError:
    """The exception for an error reply, without the leading `-`."""
    code = text.partition(" ")[0]
    # an error raised inside a script is wrapped by some servers: `ERR Error running script ... @user_script: OOM ...`
    if code in _OWN:
        return _OWN[code](text)
    if code in _REFUSED or "invalid password" in text or "Client sent AUTH" in text:
        return BrokerRefusedError(f"the broker refuses: {text.rstrip('.')}; {_HINTS.get(code, _LOGIN_HINT)}")
    match REMEDIES.get(code):
        case Remedy.FOLLOW:
            return MovedError(text)
        case Remedy.LOOK_AGAIN:
            return WrongServerError(f"the broker can't serve now: {text}")
        case Remedy.RETRY_HERE:
            return BrokerUnavailableError(f"the broker can't serve now: {text}")
        case _:
            pass
    if code == "OOM" or "maxmemory" in text:
        return BrokerFullError(f"the broker is full: {text}")
    return ReplyError(text)

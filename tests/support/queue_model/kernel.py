"""Connections whose commands the seed delivers, delays past a reconnect, drops or repeats; time; and actors, which are generators.

An actor yields an `Ask` (a command on a line) or a `Sleep`, and gets the reply, or LostReplyError when the line broke before it came.
The scripts are loaded with a TIME of the model in front of them; those of production have no such hook.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import redis

from upnext.core.keys import absent_beside
from upnext.engine.redis.replies import LostReplyError, read_error
from upnext.engine.redis.scripts import Call, Script
from upnext.errors import QueueError

_OWN_TIME = """
local clock = table.remove(ARGV)
local server = redis
local function timed(call)
  return function(name, ...)
    if name == 'TIME' then
      return {string.sub(clock, 1, -7), string.sub(clock, -6)}
    end
    return call(name, ...)
  end
end
local redis = setmetatable({call = timed(server.call), pcall = timed(server.pcall)}, {__index = server})
"""

LATE_US = (0, 1_000_000, 15_000_000, 15_000_000)
"""What was sent before a line broke may still arrive so much later."""

Change = Callable[[str, str], str]
"""(name, text) of a script -> the text to run."""


class Scripts:
    """Runs calls by the model's clock. `change`: another text for some scripts, to see whether the model finds the fault."""

    def __init__(self, client: redis.Redis, change: Change | None = None) -> None:
        self._client, self._change = client, change
        self._shas: dict[str, str] = {}

    def _sha(self, script: Script) -> str:
        sha = self._shas.get(script.name)
        if sha is None:
            text = script.text if self._change is None else self._change(script.name, script.text)
            first, second, rest = text.split("\n", 2)
            text = "\n".join((first, second, _OWN_TIME, rest))
            self._client.execute_command("SCRIPT", "LOAD", text)
            sha = self._shas[script.name] = hashlib.sha1(text.encode()).hexdigest()
        return sha

    def run(self, call: Call[Any], server_us: int) -> Any:
        keys = (*call.keys, absent_beside(call.keys[0]))
        reply = self._client.execute_command(
            "EVALSHA", self._sha(call.script), len(keys), *keys, *call.args, str(server_us)
        )
        return call.parse(reply)


@dataclass(eq=False)
class Line:
    """A connection: what was sent over it, in order, and not delivered yet."""

    id: int
    owner: str
    sent: deque[Sent] = field(default_factory=deque["Sent"])
    broken: bool = False


Command = tuple[str | int, ...]


@dataclass(frozen=True)
class Ask:
    """`what`: a call of a script, a raw command, or the id of a line to be cut."""

    line: Line
    what: Call[Any] | Command | int
    note: str


@dataclass(frozen=True)
class Sleep:
    s: float


T = TypeVar("T")
Steps = Generator[Ask | Sleep, Any, T]
Turn = Generator[Ask | Sleep, Any, None]


@dataclass(eq=False)
class Host:
    """What stops and dies together."""

    name: str
    frozen: bool = False
    dead: bool = False


@dataclass(eq=False)
class Actor:
    name: str
    host: Host
    turn: Turn
    wake_us: int | None = None
    inbox: list[Any] = field(default_factory=list[Any])
    waits: Sent | None = None
    over: bool = False


@dataclass(eq=False)
class Sent:
    ask: Ask
    actor: Actor | None
    """None: its reply reaches nobody."""
    ripe_us: int = 0
    """One that is late arrives no sooner."""


class Kernel:
    """`seen(ask, reply)` is called after each command that the server has run, `arrives_late(ask)` before one that its line outran."""

    def __init__(self, client: redis.Redis, scripts: Scripts, rng: random.Random) -> None:
        self.client, self.scripts, self.rng = client, scripts, rng
        self.now_us = 0
        self.step_back_us = 0
        """What the server's clock is ahead (or behind)."""
        self.trace: list[str] = []
        self.lines: list[Line] = []
        self.late: list[Sent] = []
        self.actors: list[Actor] = []
        self.pace = 1
        """How much slower everybody is than in most plays."""
        self.calm = False
        """Nothing goes wrong any more."""
        self.lose_next_reply = False
        self.label: Callable[[str], str] = str
        self.seen: Callable[[Ask, Any], None] = lambda ask, reply: None
        self.arrives_late: Callable[[Ask], None] = lambda ask: None

    @property
    def server_us(self) -> int:
        return 1_800_000_000_000_000 + self.now_us + self.step_back_us

    def say(self, text: str) -> None:
        self.trace.append(f"{self.now_us / 1e6:9.3f} {self.label(text)}")

    def line(self, owner: str) -> Line:
        line = Line(len(self.lines) + 1, owner)
        self.lines.append(line)
        return line

    def start(self, name: str, host: Host, turn: Turn) -> Actor:
        actor = Actor(name, host, turn)
        self.actors.append(actor)
        actor.inbox.append(None)
        return actor

    # --- one step

    def step(self) -> None:
        self.now_us += self.rng.randrange(1, 10_000) * self.pace
        self.actors = [actor for actor in self.actors if not actor.over and not actor.host.dead]
        events: list[Callable[[], None]] = []
        events += [lambda line=line: self.deliver(line.sent.popleft()) for line in self.lines if line.sent]
        ripe = [at for at, sent in enumerate(self.late) if sent.ripe_us <= self.now_us]
        events += [lambda at=at: self._deliver_late(self.late.pop(at)) for at in ripe]
        for actor in self.actors:
            if actor.host.frozen:
                continue
            if actor.inbox or (actor.wake_us is not None and actor.wake_us <= self.now_us):
                events.append(lambda actor=actor: self._resume(actor))
        if events:
            self.rng.choice(events)()
            return
        wakes = [a.wake_us for a in self.actors if a.wake_us is not None and not a.host.frozen]
        wakes += [sent.ripe_us for sent in self.late]
        self.now_us = max(self.now_us, min(wakes, default=self.now_us + 1_000_000))

    def _resume(self, actor: Actor) -> None:
        actor.wake_us = None
        reply = actor.inbox.pop(0) if actor.inbox else None
        actor.waits = None
        try:
            wish = actor.turn.throw(reply) if isinstance(reply, Exception) else actor.turn.send(reply)
        except StopIteration:
            actor.over = True
            return
        if isinstance(wish, Sleep):
            actor.wake_us = self.now_us + round(wish.s * 1e6)
        elif wish.line.broken:
            actor.inbox.append(LostReplyError("the line was cut"))
        else:
            actor.waits = Sent(wish, actor)
            wish.line.sent.append(actor.waits)

    def _deliver_late(self, sent: Sent) -> None:
        self.arrives_late(sent.ask)
        self.deliver(sent)

    def deliver(self, sent: Sent) -> None:
        """The server gets it and runs it."""
        ask = sent.ask
        reply: Any
        try:
            if isinstance(ask.what, Call):
                reply = self.scripts.run(ask.what, self.server_us)
            elif isinstance(ask.what, int):
                self.cut(self.lines[ask.what - 1], dropped=True)
                reply = None
            else:
                reply = self.client.execute_command(*ask.what)
        except redis.ResponseError as error:
            reply = read_error(str(error))
        lost = sent.actor is not None and self.lose_next_reply and not isinstance(ask.what, int)
        shown = f" !! {reply}" if isinstance(reply, QueueError) else ""
        self.say(f"{ask.line.owner}: {ask.note}{' (nobody waits for it)' if sent.actor is None else ''}{shown}")
        if lost and not ask.line.broken:
            self.lose_next_reply = False
            self.cut(ask.line, dropped=False)
            self._answer(sent, LostReplyError("the reply was lost"))
        else:
            self._answer(sent, reply)
        self.seen(ask, reply)

    def _answer(self, sent: Sent, reply: Any) -> None:
        actor = sent.actor
        if actor is None or actor.host.dead or actor.over or actor.waits is not sent:
            return
        actor.inbox.append(reply)
        if not actor.host.frozen and self.rng.random() < 0.8:
            self._resume(actor)

    def cut(self, line: Line, *, dropped: bool) -> None:
        """dropped: nothing of it arrives any more. Else what was sent may still arrive, whenever."""
        self.say(f"line {line.id} of {line.owner} is cut{' by the server' if dropped else ''}")
        line.broken = True
        if dropped:
            self.late = [sent for sent in self.late if sent.ask.line is not line]
        while line.sent:
            sent = line.sent.popleft()
            if not dropped and self.rng.random() < 0.7:
                self.late.append(Sent(sent.ask, None, self.now_us + self.rng.choice(LATE_US)))
            self._answer(sent, LostReplyError("the line was cut"))

    def kill(self, host: Host) -> None:
        """All of it at once; what it had sent may still arrive."""
        host.dead = True
        owners = {actor.name for actor in self.actors if actor.host is host}
        for line in self.lines:
            if line.owner in owners and not line.broken:
                self.cut(line, dropped=False)

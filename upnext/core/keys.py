"""THE map of keys in Redis: `Keys` has a row for each, with its type, its lifetime, what it holds and which scripts write it.

All keys of a namespace share one hash tag, so a script is atomic over them on Redis Cluster too. P is `upnext:{NAMESPACE}`.
No other module spells a key. `docs/redis-keys.md` shows the rows, and tests compare them with every Lua script.
"""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass, field
from typing import Literal, Self, overload

from upnext.core.lanes import Lane

GROUP = "w"
"""The one consumer group of every stream."""

SCHEMA = 1
"""Schema of entries and records written by this version."""

LANE_LETTERS = "".join(Lane)
"""normal, high, back, suspect."""


def absent_beside(key: str) -> str:
    """A key that is never set, in the namespace of `key`. Every script names it: a cluster refuses them while it moves the slot."""
    return key.partition("}")[0] + "}:absent"


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the map. As an attribute of `Keys` it is the key's full name, or its fixed part where the rest is variable."""

    name: str
    type: Literal["string", "hash", "zset", "set", "list", "stream", "channel", "any"]
    holds: str
    writers: str = ""
    """Scripts (`upnext/engine/lua`) that write it, separated by spaces."""
    besides: str = ""
    """What writes it without a script."""
    life: str = "a message"
    variable: str = ""
    """What follows `name`."""
    form: str = ""
    """Lua pattern of a string that can be read; "": any."""

    @overload
    def __get__(self, keys: None, owner: type) -> Self: ...
    @overload
    def __get__(self, keys: Keys, owner: type) -> str: ...
    def __get__(self, keys: Keys | None, owner: type) -> Self | str:
        return self if keys is None else keys.prefix + self.name


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of all keys of one namespace."""

    namespace: str = "default"
    prefix: str = field(init=False)

    epoch = Key(
        "epoch",
        "string",
        life="for ever",
        holds="random name of this data set; gone after FLUSHALL",
        writers="register set_aside",
        form="^[%w_.:-]+$",
    )
    schema = Key(
        "schema", "string", life="for ever", holds="newest schema number in use", writers="register", form="^%d+$"
    )
    seq = Key("seq", "string", life="for ever", holds="counter of delayed ids", writers="replace submit")
    stream_prefix = Key(
        "s:",
        "stream",
        variable="TASK:LANE",
        life="for ever",
        holds="a task's lanes n (normal), h (high), b (back), x (suspect); one entry is one job",
        writers="cancel fetch finish finish_again free_suspects hand_back promote purge_queued reap register remove "
        "replace retry retry_dead send submit tick",
        besides="a plain submit (XADD), a worker's blocking read (XREADGROUP)",
    )
    where = Key(
        "where",
        "hash",
        life="the job's",
        holds="job id -> `LANE ENTRY_ID` of a job that moved",
        writers="cancel finish finish_again free_suspects hand_back promote purge_queued reap replace retry retry_dead",
    )
    delayed = Key(
        "delayed",
        "zset",
        life="the job's",
        holds="job id -> due time, us",
        writers="cancel finish_again promote purge_delayed replace retry submit",
    )
    delayed_jobs = Key(
        "delayed:jobs",
        "hash",
        life="the job's",
        holds="job id -> packed job",
        writers="cancel finish_again promote purge_delayed replace retry submit",
    )
    result_prefix = Key(
        "r:",
        "string",
        variable="JOB_ID",
        life="result_ttl",
        holds="outcome, JSON",
        writers="cancel finish finish_again hand_back purge_dead reap replace retry_dead",
    )
    waiters = Key(
        "waiters",
        "hash",
        life="the job's",
        holds="job id -> CHANNEL#NUMBER of each registration, space separated",
        writers="cancel finish finish_again hand_back purge_delayed purge_queued reap replace unwatch watch",
    )
    dead = Key(
        "dead",
        "zset",
        life="until purged; the newest 100,000, and of these 256 MiB",
        holds="job id -> time of death, ms",
        writers="finish finish_again purge_dead reap retry_dead",
    )
    dead_jobs = Key(
        "dead:jobs",
        "hash",
        life="as P:dead",
        holds="job id -> packed job",
        writers="finish finish_again purge_dead reap retry_dead",
    )
    dead_bytes = Key(
        "dead:bytes",
        "string",
        life="as P:dead",
        holds="`COUNT BYTES` of all dead letters with their notes",
        writers="finish finish_again purge_dead reap retry_dead",
    )
    notes = Key(
        "notes",
        "hash",
        life="the job's, then its dead letter's",
        holds="job id -> progress and checkpoint, JSON",
        writers="cancel finish finish_again hand_back note purge_dead purge_delayed purge_queued reap replace retry",
    )
    idem_prefix = Key(
        "idem:",
        "string",
        variable="KEY",
        life="its own ttl",
        holds="job id of the job that holds the key; every terminal path deletes it",
        writers="cancel finish finish_again hand_back purge_delayed purge_queued reap replace send submit tick",
    )
    ended_prefix = Key(
        "ended:",
        "string",
        variable="KEY",
        life="the outcome's; of a dead letter 7 days at least",
        holds="job id of the job that held the idempotency key last, once it has ended",
        writers="cancel finish finish_again hand_back purge_delayed purge_queued reap replace",
    )
    sent_prefix = Key(
        "sent:",
        "string",
        variable="NONCE:KEY",
        life="60 s",
        holds="job id and nonce of a keyed submit, or of an event in several calls: a repeat after a lost reply gets the same answer",
        writers="replace send submit",
    )
    cancel = Key(
        "cancel",
        "hash",
        life="the job's",
        holds="job id -> time of request, ms",
        writers="cancel finish finish_again hand_back purge_delayed purge_queued reap replace",
    )
    tasks = Key(
        "tasks", "hash", life="see `upnext.core.ownership`", holds="task -> definition, JSON", writers="register remove"
    )
    seen = Key(
        "seen",
        "hash",
        life="with P:tasks",
        holds="task, cron or handler -> when it was registered or announced last, ms",
        writers="announce register remove",
    )
    announcers = Key(
        "announcers",
        "hash",
        life="the daemon's",
        holds="daemon -> what its module declares and what it serves, JSON",
        writers="announce withdraw",
    )
    announced = Key(
        "announced",
        "zset",
        life="as P:announcers",
        holds="daemon -> end of its announcement, ms",
        writers="announce withdraw",
    )
    limits = Key(
        "limits",
        "hash",
        life="with P:tasks",
        holds="task -> limits in force, JSON",
        writers="register remove set_limits",
    )
    limits_set = Key(
        "limits:set",
        "hash",
        life="until reset",
        holds="task -> limits that operators set (`null`: none), JSON",
        writers="remove set_limits",
    )
    gcra = Key(
        "gcra", "hash", life="with P:tasks", holds="task -> theoretical arrival time, us", writers="fetch remove"
    )
    lingering = Key(
        "lingering",
        "hash",
        life="the consumer's",
        holds="TASK\\nCONSUMER -> jobs that have ended there and still go on",
        writers="linger reap",
    )
    large = Key(
        "large",
        "hash",
        life="with P:tasks",
        holds="task -> bytes of its largest job, from 4 KiB on: its lanes are read so few at a time that the broker isn't held up",
        writers="fetch remove replace send submit tick",
    )
    paused = Key(
        "paused", "set", life="until resumed", holds="tasks paused everywhere", writers="pause_task remove resume_task"
    )
    consumers = Key(
        "consumers", "hash", life="the consumer's", holds="consumer -> record, JSON", writers="attach reap register"
    )
    leases = Key(
        "leases", "zset", life="the consumer's", holds="consumer -> lease end, ms", writers="beat reap register"
    )
    graves = Key("graves", "zset", life="the sweep's", holds="dead consumer -> time of death, ms", writers="reap")
    daemons = Key(
        "daemons",
        "zset",
        life="as the reports",
        holds="daemon -> until when its report is kept, ms",
        writers="report withdraw_report",
    )
    daemon_prefix = Key(
        "daemons:",
        "hash",
        variable="DAEMON",
        life="1 h after the newest",
        holds="its newest report: `daemon` and `slot:NAME` of each slot, JSON; `seen_ms`",
        writers="report withdraw_report",
    )
    watched = Key(
        "watched",
        "string",
        life="10 s",
        holds="set while daemons are looked at: they report with each beat",
        writers="watch_daemons",
    )
    leader = Key("leader", "hash", life="for ever", holds="daemon, token, epoch, until_ms", writers="beat resign")
    crons = Key(
        "crons",
        "hash",
        life="see `upnext.core.ownership`",
        holds="cron -> definition, JSON",
        writers="announce register remove",
    )
    lapsed = Key(
        "lapsed",
        "hash",
        life="30 days",
        holds="cron that lapsed -> its schedule, JSON; its cursor stays as long",
        writers="register remove",
    )
    cursors = Key(
        "cursors",
        "hash",
        life="with the cron, or P:lapsed",
        holds="cron -> newest tick that fired or was skipped, or when first seen, ms",
        writers="register remove tick",
    )
    fired = Key(
        "fired", "hash", life="with the cron", holds="cron -> newest tick that fired, ms", writers="remove tick"
    )
    schedules = Key(
        "schedules",
        "hash",
        life="until removed; 1,000 at most",
        holds="schedule that was made at run time -> its times and its task, JSON (`upnext.core.schedules`)",
        writers="remove_schedule set_schedule",
    )
    schedules_arguments = Key(
        "schedules:arguments",
        "hash",
        life="as P:schedules",
        holds="schedule -> arguments of its jobs, JSON",
        writers="remove_schedule set_schedule",
    )
    schedules_state = Key(
        "schedules:state",
        "hash",
        life="as P:schedules",
        holds="schedule -> newest tick that fired or was skipped, or when it was made, ms; `SCHEDULE fired` -> newest tick that fired, ms; "
        "`SCHEDULE skipped` -> ticks that were skipped for an earlier job; `SCHEDULE paused` -> 1",
        writers="remove_schedule set_schedule switch_schedule tick",
    )
    event_prefix = Key(
        "event:",
        "hash",
        variable="EVENT",
        life="newest seen + 7 d",
        holds="handler task -> newest seen, ms",
        writers="announce register remove send",
    )
    stats = Key(
        "stats",
        "hash",
        life="with P:tasks",
        holds="TASK:done, TASK:failed, … -> count",
        writers="cancel finish finish_again hand_back purge_delayed purge_queued reap remove replace retry tick",
    )
    rate_prefix = Key(
        "rate:", "hash", variable="BUCKET", life="120 s", holds="task -> ends in that 10 s bucket", writers="finish"
    )
    ends = Key("ends", "stream", life="capped", holds="recent ends, a batch an entry", writers="finish finish_again")
    done_prefix = Key(
        "done:",
        "list",
        variable="TASK",
        life="with P:tasks",
        holds="`MS JOB_ID` of the newest successes, newest first: 100 and a few",
        writers="finish remove",
    )
    groups = Key(
        "groups",
        "hash",
        life="with P:tasks; at most 32 of a task, about 2,000 of all",
        holds="`TASK\\nGROUP` -> `COUNT FIRST_MS LAST_MS LETTER ABOUT` of ends that are no success; TASK -> its groups",
        writers="cancel finish finish_again hand_back purge_delayed purge_queued reap remove replace",
    )
    group_ids = Key(
        "groups:ids",
        "hash",
        life="as P:groups",
        holds="`TASK\\nGROUP` -> `MS JOB_ID` of its newest 100, a line each",
        writers="cancel finish finish_again hand_back purge_delayed purge_queued reap remove replace",
    )
    flow_prefix = Key(
        "f:",
        "hash",
        variable="ROOT",
        life="1 d after the last change",
        holds="job below ROOT -> `LETTER MS PARENT`: o not ended, else the letter of its end; 10,000 at most",
        writers="cancel finish finish_again hand_back purge_delayed purge_queued reap replace retry_dead send submit",
    )
    series_prefix = Key(
        "series:",
        "hash",
        variable="STEP:MINUTE",
        life="3 h in steps of a minute, 7 d in steps of 15",
        holds="task -> its counters and depths at that minute, eight numbers; `=`: all tasks were looked at, one without a row stood still",
        writers="sample",
    )
    series_last_prefix = Key(
        "series:last:",
        "hash",
        variable="STEP",
        life="with P:tasks",
        holds="task -> the newest row that was written of it",
        writers="remove sample",
    )
    times_prefix = Key(
        "times:",
        "hash",
        variable="STEP:MINUTE",
        life="as P:series:",
        holds="task -> how many attempts waited (s) and ran (r) how long, by bucket: `s12=3 r20=8`",
        writers="note_times",
    )
    audit = Key(
        "audit",
        "stream",
        life="the newest 10,000",
        holds="actions of people on the dashboard: who, what, on what",
        besides="the dashboard (XADD)",
    )
    activity = Key(
        "activity",
        "stream",
        life="the newest 10,000",
        holds="events of daemons: e JSON {name, host, at_ms, kind, slot, text}, d daemon, n LIFE-NUMBER of the event",
        writers="note_activity",
    )
    cache_prefix = Key(
        "cache:",
        "string",
        variable="KEY",
        life="cache_ttl",
        holds="cached outcome, JSON; KEY joins the task and its values by their lengths",
        writers="finish",
    )
    aside = Key(
        "aside",
        "hash",
        life="until removed",
        holds="name of a key that was set aside -> which key it was, what was wrong, when: JSON",
        writers="set_aside",
        besides="`upnext doctor --remove` (remove_bad), which removes what it names from any key",
    )
    aside_prefix = Key(
        "aside:",
        "any",
        variable="NAME",
        life="until removed",
        holds="what P:NAME held that it should not",
        writers="set_aside",
    )
    bell = Key(
        "bell",
        "channel",
        holds="wake-ups of workers, schedulers and waiters, see `upnext.engine.redis.wakeups`",
        writers="cancel finish free_suspects hand_back linger pause_task promote reap register remove remove_schedule "
        "replace resume_task retry retry_dead send set_limits set_schedule submit switch_schedule tick "
        "watch_daemons",
    )
    reply_prefix = Key(
        "reply:",
        "channel",
        variable="NONCE",
        holds="outcomes for one waiting client",
        writers="cancel finish finish_again hand_back purge_delayed purge_queued reap replace",
    )
    ear_prefix = Key(
        "ear:",
        "channel",
        variable="NONCE",
        holds="probes that one subscriber sends to itself",
        besides="a subscriber (SPUBLISH)",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", f"upnext:{{{self.namespace}}}:")

    def stream(self, task: str, lane: str) -> str:
        return f"{self.prefix}s:{task}:{lane}"

    def streams(self, task: str) -> list[str]:
        """All lanes of a task, in the order of LANE_LETTERS."""
        return [self.stream(task, lane) for lane in LANE_LETTERS]

    def result(self, job_id: str) -> str:
        return self.result_prefix + job_id

    @property
    def of_an_end(self) -> tuple[str, ...]:
        """What `lua/include/end_job.lua` and its callers write when a job ends, in the order in which they take them."""
        return (
            self.where,
            self.waiters,
            self.dead,
            self.dead_jobs,
            self.cancel,
            self.stats,
            self.notes,
            self.dead_bytes,
            self.groups,
            self.group_ids,
            self.flow_prefix,
            self.ended_prefix,
        )

    def done(self, task: str) -> str:
        """The newest successes of a task."""
        return self.done_prefix + task

    def series(self, step: int, minute: int) -> str:
        """Samples of all tasks at a minute (since 1970), of those taken every `step` minutes."""
        return f"{self.series_prefix}{step}:{minute}"

    def series_last(self, step: int) -> str:
        return f"{self.series_last_prefix}{step}"

    def times(self, step: int, minute: int) -> str:
        """How long attempts waited and ran within `step` minutes from that one on."""
        return f"{self.times_prefix}{step}:{minute}"

    def flow(self, root_id: str) -> str:
        """The jobs below a root."""
        return self.flow_prefix + root_id

    def idem(self, key: str) -> str:
        return self.idem_prefix + key

    def sent(self, nonce: str, key: str) -> str:
        return f"{self.sent_prefix}{nonce}:{key}"

    def event(self, name: str) -> str:
        return self.event_prefix + name

    def daemon(self, daemon: str) -> str:
        """The report of one daemon."""
        return self.daemon_prefix + daemon

    def cache(self, key: str) -> str:
        """`key`: as `upnext.engine.worker.cache` makes it."""
        return self.cache_prefix + key

    def ear(self, nonce: str) -> str:
        """The channel of one subscriber, over which it proves to itself that messages reach it."""
        return self.ear_prefix + nonce

    @property
    def slot(self) -> int:
        """The slot of a cluster that has all keys."""
        return crc_hqx(self.namespace.encode(), 0) % 16384

    def reply(self, nonce: str) -> str:
        return self.reply_prefix + nonce

    @property
    def lasting(self) -> list[str]:
        """Every key with a fixed name."""
        return [self.prefix + row.name for row in ROWS.values() if not row.variable and row.type != "channel"]


ROWS: dict[str, Key] = {attribute: row for attribute, row in vars(Keys).items() if isinstance(row, Key)}
"""Every row, by its attribute of `Keys`."""


_FIXED = {row.name: row for row in ROWS.values() if not row.variable}
_VARIABLE = [row for row in ROWS.values() if row.variable]


def row_of(name: str) -> Key | None:
    """The row of a key by its name without the namespace's prefix; None for one that isn't in the map."""
    return _FIXED.get(name) or next((row for row in _VARIABLE if name.startswith(row.name)), None)


def keys_beside(key: str) -> Keys:
    """The keys of the namespace that `key` is in."""
    return Keys(key.partition("}")[0].removeprefix("upnext:{"))

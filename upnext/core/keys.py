r"""THE map of keys in Redis: name, type, lifetime, who writes it. No other module spells a key.

All keys of a namespace share one hash tag, so a script is atomic over them on Redis Cluster too. P is `upnext:{NAMESPACE}`.

| key | type | lives | holds | written by |
|---|---|---|---|---|
| P:epoch | string | for ever | random name of this data set; gone after FLUSHALL | register |
| P:schema | string | for ever | newest schema number in use | register |
| P:seq | string | for ever | counter of delayed ids | submit |
| P:s:TASK:n / :h / :b / :x | stream | for ever | lanes normal, high, back, suspect; one entry = one job | submit, promote, reap, ... |
| P:where | hash | the job's | job id -> `LANE ENTRY_ID` of a job that moved | reap, hand_back, promote, … |
| P:delayed | zset | the job's | job id -> due time, us | submit, retry |
| P:delayed:jobs | hash | the job's | job id -> packed job | submit, retry |
| P:r:JOB_ID | string | result_ttl | outcome, JSON | finish |
| P:waiters | hash | the job's | job id -> CHANNEL#NUMBER of each registration, space separated | watch, finish |
| P:dead | zset | until purged; the newest 100,000 | job id -> time of death, ms | finish, reap |
| P:dead:jobs | hash | as P:dead | job id -> packed job | finish, reap |
| P:idem:KEY | string | its own ttl | job id | submit; deleted by every terminal path |
| P:sent:NONCE:KEY | string | 60 s | job id and nonce of a keyed submit: a repeat after a lost reply is told the same | submit, send |
| P:cancel | hash | the job's | job id -> time of request, ms | cancel |
| P:tasks | hash | see `upnext.core.ownership` | task -> definition, JSON | register, remove |
| P:seen | hash | with P:tasks | task, cron or handler -> when it was registered or announced last, ms | register, announce, remove |
| P:announcers | hash | the daemon's | daemon -> what its module declares and what it serves, JSON | announce, withdraw |
| P:announced | zset | as P:announcers | daemon -> end of its announcement, ms | announce, withdraw |
| P:limits | hash | with P:tasks | task -> limits in force, JSON | register, set_limits, remove |
| P:limits:set | hash | until reset | task -> limits that operators set (`null`: none), JSON | set_limits |
| P:gcra | hash | for ever | task -> theoretical arrival time, us | fetch |
| P:lingering | hash | the consumer's | TASK\nCONSUMER -> jobs that have ended there and still go on | linger, reap |
| P:paused | set | for ever | tasks paused everywhere | pause_task |
| P:consumers | hash | the consumer's | consumer -> record, JSON | register, reap |
| P:leases | zset | the consumer's | consumer -> lease end, ms | register, beat, reap |
| P:graves | zset | the sweep's | dead consumer -> time of death, ms | reap |
| P:leader | hash | for ever | daemon, token, epoch, until_ms | beat, resign |
| P:crons | hash | see `upnext.core.ownership` | cron -> definition, JSON | register, announce, remove |
| P:lapsed | hash | 30 days | cron that lapsed -> its schedule, JSON; its cursor stays as long | remove, register |
| P:cursors | hash | with the cron, or P:lapsed | cron -> newest tick that fired or was skipped, or when first seen, ms | register, tick |
| P:fired | hash | with the cron | cron -> newest tick that fired, ms | tick |
| P:event:EVENT | hash | newest seen + 7 d | handler task -> newest seen, ms | register, announce, remove |
| P:stats | hash | for ever | TASK:done, TASK:failed, … -> count | finish, reap |
| P:rate:BUCKET | hash | 120 s | task -> ends in that 10 s bucket | finish |
| P:ends | stream | capped | recent ends, a batch an entry | finish |
| P:audit | stream | the newest 10,000 | what people did on the dashboard: who, what, on what | dashboard |
| P:p:JOB_ID | string | result_ttl | progress and checkpoint, JSON | progress |
| P:cache:TASK:KEY | string | cache_ttl | cached outcome, JSON | finish |

Channels (sharded: SPUBLISH, SSUBSCRIBE): P:bell (see `upnext.engine.redis.wakeups`), P:reply:NONCE (one per waiting
client), P:ear:NONCE (one per subscriber: its words to itself).
"""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass, field

GROUP = "w"
"""The one consumer group of every stream."""

SCHEMA = 1
"""Schema of entries and records written by this version."""

LANE_LETTERS = "nhbx"
"""normal, high, back, suspect."""


def absent_beside(key: str) -> str:
    """A key that is never set, in the namespace of `key`. Every script names it: a cluster refuses them while it moves the slot."""
    return key.partition("}")[0] + "}:absent"


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of all keys of one namespace."""

    namespace: str = "default"
    prefix: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", f"upnext:{{{self.namespace}}}:")

    def stream(self, task: str, lane: str) -> str:
        return f"{self.prefix}s:{task}:{lane}"

    def streams(self, task: str) -> list[str]:
        """All lanes of a task, in the order of LANE_LETTERS."""
        return [self.stream(task, lane) for lane in LANE_LETTERS]

    @property
    def stream_prefix(self) -> str:
        return self.prefix + "s:"

    @property
    def epoch(self) -> str:
        return self.prefix + "epoch"

    @property
    def schema(self) -> str:
        return self.prefix + "schema"

    @property
    def seq(self) -> str:
        return self.prefix + "seq"

    @property
    def where(self) -> str:
        return self.prefix + "where"

    @property
    def delayed(self) -> str:
        return self.prefix + "delayed"

    @property
    def delayed_jobs(self) -> str:
        return self.prefix + "delayed:jobs"

    @property
    def result_prefix(self) -> str:
        return self.prefix + "r:"

    def result(self, job_id: str) -> str:
        return self.result_prefix + job_id

    @property
    def waiters(self) -> str:
        return self.prefix + "waiters"

    @property
    def of_an_end(self) -> tuple[str, ...]:
        """What `lua/include/end_job.lua` and its callers write when a job ends, in the order in which they take them."""
        return (self.where, self.waiters, self.dead, self.dead_jobs, self.cancel, self.stats)

    @property
    def dead(self) -> str:
        return self.prefix + "dead"

    @property
    def dead_jobs(self) -> str:
        return self.prefix + "dead:jobs"

    @property
    def idem_prefix(self) -> str:
        return self.prefix + "idem:"

    def idem(self, key: str) -> str:
        return self.idem_prefix + key

    def sent(self, nonce: str, key: str) -> str:
        return f"{self.prefix}sent:{nonce}:{key}"

    @property
    def cancel(self) -> str:
        return self.prefix + "cancel"

    @property
    def tasks(self) -> str:
        return self.prefix + "tasks"

    @property
    def limits(self) -> str:
        return self.prefix + "limits"

    @property
    def limits_set(self) -> str:
        return self.prefix + "limits:set"

    @property
    def seen(self) -> str:
        return self.prefix + "seen"

    @property
    def announcers(self) -> str:
        return self.prefix + "announcers"

    @property
    def announced(self) -> str:
        return self.prefix + "announced"

    @property
    def lapsed(self) -> str:
        return self.prefix + "lapsed"

    @property
    def gcra(self) -> str:
        return self.prefix + "gcra"

    @property
    def lingering(self) -> str:
        return self.prefix + "lingering"

    @property
    def paused(self) -> str:
        return self.prefix + "paused"

    @property
    def consumers(self) -> str:
        return self.prefix + "consumers"

    @property
    def leases(self) -> str:
        return self.prefix + "leases"

    @property
    def graves(self) -> str:
        return self.prefix + "graves"

    @property
    def leader(self) -> str:
        return self.prefix + "leader"

    @property
    def crons(self) -> str:
        return self.prefix + "crons"

    @property
    def cursors(self) -> str:
        return self.prefix + "cursors"

    @property
    def fired(self) -> str:
        return self.prefix + "fired"

    @property
    def event_prefix(self) -> str:
        return self.prefix + "event:"

    def event(self, name: str) -> str:
        return self.event_prefix + name

    @property
    def stats(self) -> str:
        return self.prefix + "stats"

    @property
    def rate_prefix(self) -> str:
        return self.prefix + "rate:"

    @property
    def ends(self) -> str:
        return self.prefix + "ends"

    @property
    def audit(self) -> str:
        return self.prefix + "audit"

    @property
    def progress_prefix(self) -> str:
        return self.prefix + "p:"

    def progress(self, job_id: str) -> str:
        return self.progress_prefix + job_id

    @property
    def cache_prefix(self) -> str:
        return self.prefix + "cache:"

    def cache(self, key: str) -> str:
        """`key` is `TASK:KEY`."""
        return self.cache_prefix + key

    def ear(self, nonce: str) -> str:
        """The channel of one subscriber, over which it proves to itself that it is told."""
        return f"{self.prefix}ear:{nonce}"

    @property
    def slot(self) -> int:
        """The slot of a cluster that has all keys."""
        return crc_hqx(self.namespace.encode(), 0) % 16384

    @property
    def bell(self) -> str:
        return self.prefix + "bell"

    @property
    def reply_prefix(self) -> str:
        return self.prefix + "reply:"

    def reply(self, nonce: str) -> str:
        return self.reply_prefix + nonce

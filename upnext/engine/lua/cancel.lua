#!lua flags=allow-oom
-- Cancels a job: a delayed or queued one ends here; for a running one a flag is written, which retry, reap and its worker obey, and the bell rings.
-- KEYS: 1 where, 2 waiters, 3 dead, 4 dead:jobs, 5 cancel, 6 result, 7 delayed, 8 delayed:jobs, 9 tasks, 10 stats, 11 notes, 12 dead:bytes,
--       13 groups, 14 groups:ids, 15 f:, 16 ended:, 17... the task's four lanes
-- ARGV: 1 job id, 2 its task, 3 letter of its birth, 4 its first entry id, 5 result prefix, 6 idempotency prefix, 7 reply prefix, 8 bell channel
-- Returns: 1 ended as cancelled; 2 running, asked to end; 0 it has ended, or it is unknown
-- Errors: none
-- include: must_be
-- include: task_options
-- include: unpack_job
-- include: dead_total
-- include: end_job
-- include: ends
-- include: flow
-- include: end_cancelled
-- include: read_meta
local job, task = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local keys = {
  where = KEYS[1], waiters = KEYS[2], dead = KEYS[3], dead_jobs = KEYS[4], cancel = KEYS[5], tasks = KEYS[9], stats = KEYS[10],
  notes = KEYS[11], dead_bytes = KEYS[12], groups = KEYS[13], group_ids = KEYS[14], flow = KEYS[15], ended = KEYS[16],
  result = ARGV[5], idem = ARGV[6], reply = ARGV[7], have_waiters = true, have_cancels = true,
}

must_be('hash', KEYS[1], KEYS[2], KEYS[4], KEYS[5], KEYS[8], KEYS[9], KEYS[11])
must_be('zset', KEYS[3], KEYS[7])
local packed = redis.call('HGET', KEYS[8], job)
if packed then
  local _, meta = unpack_job(packed)
  redis.call('ZREM', KEYS[7], job)
  redis.call('HDEL', KEYS[8], job)
  end_cancelled(keys, now, task, job, meta or {}, false, nil, nil)
  keep_ends(keys, now)
  return 1
end

local lane, entry = ARGV[3], ARGV[4]
local place = redis.call('HGET', KEYS[1], job)
if place then
  lane, entry = string.match(place, '^(%l) (.+)$')
elseif lane == 'd' then
  return 0
end
local stream = KEYS[16 + string.find('nhbx', lane, 1, true)]
local found = redis.call('XRANGE', stream, entry, entry)
if not found[1] then
  return 0
end
local pending = redis.pcall('XPENDING', stream, 'w', entry, entry, 1)
if not pending.err and #pending > 0 then
  redis.call('HSET', KEYS[5], job, string.format('%.0f', now))
  redis.call('SPUBLISH', ARGV[8], 'c' .. job)
  return 2
end
redis.call('XDEL', stream, entry)
end_cancelled(keys, now, task, job, read_meta(found[1][2]) or {}, place ~= false, nil, nil)
keep_ends(keys, now)
return 1

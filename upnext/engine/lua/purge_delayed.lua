#!lua flags=allow-oom
-- Removes a task's jobs from a part of the delayed set; called until the cursor is 0 again. Each ends cancelled: its waiters wake, its key is free.
-- KEYS: 1 delayed, 2 delayed:jobs, 3 where, 4 waiters, 5 dead, 6 dead:jobs, 7 cancel, 8 stats, 9 notes, 10 dead:bytes, 11 groups, 12 groups:ids, 13 f:, 14 ended:
-- ARGV: 1 result prefix, 2 idempotency prefix, 3 reply prefix, 4 task, 5 outcome, 6 cursor, 7 about how many jobs to look at, 8 most bytes read
-- Returns: {next cursor, the number of jobs removed, 1 when this part is not done: call again with the cursor of this call}
-- Errors: none
-- include: must_be
-- include: unpack_job
-- include: dead_total
-- include: end_job
-- include: ends
-- include: flow
must_be('zset', KEYS[1], KEYS[5])
must_be('hash', KEYS[2], KEYS[3], KEYS[4], KEYS[6], KEYS[7], KEYS[9])
local keys = {
  where = KEYS[3], waiters = KEYS[4], dead = KEYS[5], dead_jobs = KEYS[6], cancel = KEYS[7], notes = KEYS[9], dead_bytes = KEYS[10],
  groups = KEYS[11], group_ids = KEYS[12], flow = KEYS[13], ended = KEYS[14],
  result = ARGV[1], idem = ARGV[2], reply = ARGV[3],
  have_waiters = redis.call('HLEN', KEYS[4]) > 0, have_cancels = redis.call('HLEN', KEYS[7]) > 0,
}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = redis.call('ZSCAN', KEYS[1], ARGV[6], 'COUNT', ARGV[7])
local removed, left, more = 0, tonumber(ARGV[8]), 0
for at = 1, #found[2], 2 do
  local job = found[2][at]
  if left <= 0 then
    more = 1
    break
  end
  if string.match(job, '^(.*):[^:]*$') == ARGV[4] and redis.call('ZREM', KEYS[1], job) == 1 then
    local packed = redis.call('HGET', KEYS[2], job)
    left = left - #(packed or '')
    local _, meta = unpack_job(packed)
    redis.call('HDEL', KEYS[2], job)
    end_job(keys, 0, job, ARGV[5], 0, meta or {}, nil, false)
    note_cancelled(ARGV[4], job, 'purged')
    note_child(keys, now, 'c', job, meta or {})
    removed = removed + 1
  end
end
keep_ends(keys, now)
if removed > 0 then
  redis.pcall('HINCRBY', KEYS[8], ARGV[4] .. ':cancelled', removed)
end
return {found[1], removed, more}

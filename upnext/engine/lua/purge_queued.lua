#!lua flags=allow-oom
-- Removes jobs that wait in one lane of a task; called until it removed none. Each ends cancelled: its waiters wake, its key is free.
-- KEYS: 1 the lane's stream, 2 where, 3 waiters, 4 dead, 5 dead:jobs, 6 cancel, 7 stats, 8 notes, 9 dead:bytes, 10 groups, 11 groups:ids, 12 f:, 13 ended:
-- ARGV: 1 result prefix, 2 idempotency prefix, 3 reply prefix, 4 task, 5 outcome, 6 most jobs, 7 most bytes read
-- Returns: the number of jobs removed
-- Errors: none
-- include: last_fetched
-- include: must_be
-- include: read_meta
-- include: walk
-- include: dead_total
-- include: end_job
-- include: ends
-- include: flow
local lane = string.sub(KEYS[1], -1)
local keys = {
  where = KEYS[2], waiters = KEYS[3], dead = KEYS[4], dead_jobs = KEYS[5], cancel = KEYS[6], notes = KEYS[8], dead_bytes = KEYS[9],
  groups = KEYS[10], group_ids = KEYS[11], flow = KEYS[12], ended = KEYS[13],
  result = ARGV[1], idem = ARGV[2], reply = ARGV[3],
  have_waiters = redis.call('HLEN', KEYS[3]) > 0, have_cancels = redis.call('HLEN', KEYS[6]) > 0,
}
must_be('hash', KEYS[2], KEYS[3], KEYS[5], KEYS[6], KEYS[8])
must_be('zset', KEYS[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local removed = walk(KEYS[1], '(' .. last_fetched(KEYS[1]), '+', tonumber(ARGV[6]), tonumber(ARGV[7]), false, function(id, fields)
  local meta = read_meta(fields) or {}
  local job = meta.i or (ARGV[4] .. ':' .. lane .. id)
  redis.call('XDEL', KEYS[1], id)
  end_job(keys, 0, job, ARGV[5], 0, meta, nil, meta.i ~= nil)
  note_cancelled(ARGV[4], job, 'purged')
  note_child(keys, now, 'c', job, meta)
end)
keep_ends(keys, now)
if removed > 0 then
  redis.pcall('HINCRBY', KEYS[7], ARGV[4] .. ':cancelled', removed)
end
return removed

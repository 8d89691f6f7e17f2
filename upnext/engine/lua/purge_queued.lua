#!lua flags=allow-oom
-- Removes jobs that wait in one lane of a task; called until it removed none. Each ends cancelled: its waiters wake, its key is free.
-- KEYS: 1 the lane's stream, 2 where, 3 waiters, 4 dead, 5 dead:jobs, 6 cancel, 7 stats
-- ARGV: 1 result prefix, 2 idempotency prefix, 3 reply prefix, 4 task, 5 outcome, 6 most jobs
-- Returns: the number of jobs removed
-- Errors: none
-- include: last_fetched
-- include: must_be
-- include: read_meta
-- include: end_job
local lane = string.sub(KEYS[1], -1)
local keys = {
  where = KEYS[2], waiters = KEYS[3], dead = KEYS[4], dead_jobs = KEYS[5], cancel = KEYS[6],
  result = ARGV[1], idem = ARGV[2], reply = ARGV[3],
  have_waiters = redis.call('HLEN', KEYS[3]) > 0, have_cancels = redis.call('HLEN', KEYS[6]) > 0,
}
must_be('hash', KEYS[2], KEYS[3], KEYS[5], KEYS[6])
must_be('zset', KEYS[4])
local entries = redis.call('XRANGE', KEYS[1], '(' .. last_fetched(KEYS[1]), '+', 'COUNT', ARGV[6])
for _, entry in ipairs(entries) do
  local meta = read_meta(entry[2]) or {}
  local job = meta.i or (ARGV[4] .. ':' .. lane .. entry[1])
  redis.call('XDEL', KEYS[1], entry[1])
  end_job(keys, 0, job, ARGV[5], 0, meta, nil, meta.i ~= nil)
end
if #entries > 0 then
  redis.pcall('HINCRBY', KEYS[7], ARGV[4] .. ':cancelled', #entries)
end
return #entries

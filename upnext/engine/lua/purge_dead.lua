#!lua flags=allow-oom
-- Forgets dead letters, and their results and notes with them.
-- KEYS: 1 dead, 2 dead:jobs, 3 notes, 4 dead:bytes
-- ARGV: 1 result prefix, 2... job ids
-- Returns: the ids that were no dead letters
-- Errors: none
-- include: must_be
-- include: dead_total
must_be('zset', KEYS[1])
must_be('hash', KEYS[2], KEYS[3])
local keys = {dead = KEYS[1], dead_jobs = KEYS[2], notes = KEYS[3], dead_bytes = KEYS[4]}
local count, bytes = dead_total(keys)
local unknown = {}
for at = 2, #ARGV do
  local job = ARGV[at]
  local size = dead_size(keys, job)
  if redis.call('ZREM', KEYS[1], job) + redis.call('HDEL', KEYS[2], job) == 0 then
    unknown[#unknown + 1] = job
  else
    redis.call('DEL', ARGV[1] .. job)
    redis.call('HDEL', KEYS[3], job)
    count, bytes = count - 1, bytes - size
  end
end
keep_dead_total(keys, count, bytes)
return unknown

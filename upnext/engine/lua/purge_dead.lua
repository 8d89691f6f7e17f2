#!lua flags=allow-oom
-- Forgets dead letters, and their results with them.
-- KEYS: 1 dead, 2 dead:jobs
-- ARGV: 1 result prefix, 2... job ids
-- Returns: the ids that were no dead letters
-- Errors: none
-- include: must_be
must_be('zset', KEYS[1])
must_be('hash', KEYS[2])
local unknown = {}
for at = 2, #ARGV do
  local job = ARGV[at]
  if redis.call('ZREM', KEYS[1], job) + redis.call('HDEL', KEYS[2], job) == 0 then
    unknown[#unknown + 1] = job
  else
    redis.call('DEL', ARGV[1] .. job)
  end
end
return unknown

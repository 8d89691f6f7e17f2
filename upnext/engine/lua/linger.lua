#!lua flags=allow-oom
-- Says how many jobs of a task have ended in a consumer while their thread or coroutine goes on there: each keeps a permit, until it ends or the consumer does.
-- KEYS: 1 epoch, 2 leases, 3 lingering
-- ARGV: 1 epoch, 2 consumer, 3 task, 4 how many, 5 bell channel
-- Returns: 1, or 0 when the consumer has no lease any more
-- Errors: EPOCH
-- include: epoch
-- include: must_be
must_be('zset', KEYS[2])
must_be('hash', KEYS[3])
if not redis.call('ZSCORE', KEYS[2], ARGV[2]) then
  return 0
end
local field = ARGV[3] .. '\n' .. ARGV[2]
if tonumber(ARGV[4]) > 0 then
  redis.call('HSET', KEYS[3], field, ARGV[4])
else
  redis.call('HDEL', KEYS[3], field)
end
redis.call('SPUBLISH', ARGV[5], 't' .. ARGV[3])
return 1

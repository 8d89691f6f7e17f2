#!lua flags=allow-oom
-- Writes what a daemon reports of itself and its slots, in place of what it reported before; forgets reports whose time is over.
-- KEYS: 1 daemons, 2 daemons:
-- ARGV: 1 daemon, 2 seconds that the report is kept, 3... pairs: a field (`daemon`, `slot:NAME`), its JSON; at most 501
-- Returns: server ms
-- Errors: none
-- include: must_be
must_be('zset', KEYS[1])
must_be('hash', KEYS[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reported = {}
for at = 3, #ARGV, 2 do
  reported[ARGV[at]] = ARGV[at + 1]
end
reported.seen_ms = string.format('%.0f', now)
local before = redis.call('HKEYS', KEYS[2])
local over = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 20)
for _, field in ipairs(before) do
  if not reported[field] then
    redis.call('HDEL', KEYS[2], field)
  end
end
for field, value in pairs(reported) do
  redis.call('HSET', KEYS[2], field, value)
end
redis.call('EXPIRE', KEYS[2], ARGV[2])
for _, daemon in ipairs(over) do
  redis.call('ZREM', KEYS[1], daemon)
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2] * 1000), ARGV[1])
return now

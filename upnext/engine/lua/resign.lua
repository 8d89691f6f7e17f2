#!lua flags=allow-oom
-- Gives the leadership up at a clean stop, so that no scheduler has to wait for its end.
-- KEYS: 1 epoch, 2 leader
-- ARGV: 1 epoch, 2 daemon, 3 token of this scheduler's life
-- Returns: 1, or 0 when another scheduler leads by now
-- Errors: EPOCH
-- include: epoch
local held = redis.call('HMGET', KEYS[2], 'daemon', 'token')
if held[1] ~= ARGV[2] or held[2] ~= ARGV[3] then
  return 0
end
redis.call('HSET', KEYS[2], 'until_ms', '0')
return 1

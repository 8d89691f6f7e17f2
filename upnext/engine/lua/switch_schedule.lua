#!lua flags=allow-oom
-- Pauses a schedule, or lets it go on.
-- KEYS: 1 schedules, 2 schedules:state
-- ARGV: 1 name, 2 '1': pause, '0': resume, 3 bell channel
-- Returns: 1 changed, 0 it was so already, -1 there is none of this name
-- Errors: none
-- include: must_be
must_be('hash', KEYS[1], KEYS[2])
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return -1
end
local field = ARGV[1] .. ' paused'
local was = redis.call('HEXISTS', KEYS[2], field) == 1
if was == (ARGV[2] == '1') then
  return 0
end
if was then
  redis.call('HDEL', KEYS[2], field)
else
  redis.call('HSET', KEYS[2], field, '1')
end
redis.call('SPUBLISH', ARGV[3], 'p')
return 1

#!lua flags=allow-oom
-- Removes a schedule with all that is kept of it. Jobs that it has started stay.
-- KEYS: 1 schedules, 2 schedules:arguments, 3 schedules:state
-- ARGV: 1 name, 2 bell channel
-- Returns: 1 removed, 0 there is none of this name
-- Errors: none
-- include: must_be
must_be('hash', KEYS[1], KEYS[2], KEYS[3])
local name = ARGV[1]
local there = redis.call('HDEL', KEYS[1], name)
redis.call('HDEL', KEYS[2], name)
redis.call('HDEL', KEYS[3], name, name .. ' fired', name .. ' skipped', name .. ' paused')
if there == 1 then
  redis.call('SPUBLISH', ARGV[2], 'p')
end
return there

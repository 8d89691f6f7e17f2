#!lua flags=allow-oom
-- Stops the fetching of a task everywhere.
-- KEYS: 1 paused, 2 tasks
-- ARGV: 1 task, 2 bell channel
-- Returns: 1 paused now, 0 it was paused already, -1 no service ever registered it
-- Errors: none
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then
  return -1
end
local changed = redis.call('SADD', KEYS[1], ARGV[1])
redis.call('SPUBLISH', ARGV[2], 'p')
return changed

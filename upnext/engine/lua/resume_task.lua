#!lua flags=allow-oom
-- Lets a paused task be fetched again.
-- KEYS: 1 paused, 2 tasks
-- ARGV: 1 task, 2 bell channel
-- Returns: 1 resumed, 0 it was not paused, -1 no service ever registered it
-- Errors: none
local changed = redis.call('SREM', KEYS[1], ARGV[1])
if changed == 0 and redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then
  return -1
end
redis.call('SPUBLISH', ARGV[2], 'p')
return changed

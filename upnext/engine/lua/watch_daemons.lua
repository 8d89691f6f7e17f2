#!lua flags=allow-oom
-- Makes the schedulers report with each beat for a while.
-- KEYS: 1 watched
-- ARGV: 1 bell channel, 2 seconds
-- Returns: 1 when they were not looked at before, and have been rung
-- Errors: none
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('SET', KEYS[1], '1', 'EX', ARGV[2])
  return 0
end
redis.call('SET', KEYS[1], '1', 'EX', ARGV[2])
redis.call('SPUBLISH', ARGV[1], 'w')
return 1

#!lua flags=allow-oom
-- Sets a task's limits over those that its code declares, or takes the declared ones again.
-- KEYS: 1 tasks, 2 limits:set, 3 limits
-- ARGV: 1 task, 2 limits (JSON; 'null': none at all; '': as declared), 3 bell channel
-- Returns: 1 done, -1 no such task
-- Errors: none
local raw = redis.call('HGET', KEYS[1], ARGV[1])
if not raw then
  return -1
end
local limits = ARGV[2]
if limits == '' then
  local fine, row = pcall(cjson.decode, raw)
  local declared = fine and type(row) == 'table' and row.limits
  limits = type(declared) == 'table' and cjson.encode(declared) or 'null'
  redis.call('HDEL', KEYS[2], ARGV[1])
else
  redis.call('HSET', KEYS[2], ARGV[1], limits)
end
if limits == 'null' then
  redis.call('HDEL', KEYS[3], ARGV[1])
else
  redis.call('HSET', KEYS[3], ARGV[1], limits)
end
redis.call('SPUBLISH', ARGV[3], 'p')
return 1

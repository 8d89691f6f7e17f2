#!lua flags=no-writes
-- How many jobs of each task are in a part of the delayed set or of the dead letters; called until the cursor is 0 again.
-- KEYS: 1 delayed or dead
-- ARGV: 1 cursor, 2 about how many jobs to look at
-- Returns: {next cursor, then pairs: task, count}
-- Errors: none
-- include: pass_over
pass_over('zset', 1)
local found = redis.call('ZSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local counts = {}
for at = 1, #found[2], 2 do
  local task = string.match(found[2][at], '^(.*):[^:]*$') or ''
  counts[task] = (counts[task] or 0) + 1
end
local reply = {found[1]}
for task, count in pairs(counts) do
  reply[#reply + 1] = task
  reply[#reply + 1] = count
end
return reply

#!lua flags=no-writes
-- How many dead letters of each task and group are in a part of them; called until the cursor is 0 again.
-- KEYS: 1 dead, 2 dead:jobs
-- ARGV: 1 cursor, 2 about how many jobs to look at
-- Returns: {next cursor, then fives: task, group ('': of an older version), count, time of the newest's death in ms, its job id}
-- Errors: none
-- include: pass_over
pass_over('zset', 1)
pass_over('hash', 2)
local found = redis.call('ZSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local groups = {}
for at = 1, #found[2], 2 do
  local job, died = found[2][at], tonumber(found[2][at + 1]) or 0
  local packed = redis.call('HGET', KEYS[2], job) or ''
  local size, start = string.match(packed, '^%l(%d+):()')
  local task, _, last, group = string.match(job, '^(.*):[^:]*$') or '', string.find(packed, '"g":"(%x+)"', start or 1)
  group = start and last and last < start + tonumber(size) and group or '' -- what stands behind the meta is the payload
  local one = groups[task .. '\n' .. group]
  if not one then
    one = {task, group, 0, -1, job}
    groups[task .. '\n' .. group] = one
  end
  one[3] = one[3] + 1
  if died > one[4] then
    one[4], one[5] = died, job
  end
end
local reply = {found[1]}
for _, one in pairs(groups) do
  local size = #reply
  reply[size + 1], reply[size + 2], reply[size + 3] = one[1], one[2], one[3]
  reply[size + 4], reply[size + 5] = string.format('%.0f', one[4]), one[5]
end
return reply

#!lua flags=no-writes
-- A page of the groups of ends that are no success, or all groups of one task.
-- KEYS: 1 groups
-- ARGV: 1 task ('': any), 2 cursor, 3 about how many to look at
-- Returns: {next cursor, then pairs: field, row}; the fields that are a task's own list of groups are among them
-- Errors: none
-- include: pass_over
pass_over('hash', 1)
if ARGV[1] == '' then
  local found = redis.call('HSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
  local reply = found[2]
  table.insert(reply, 1, found[1])
  return reply
end
local reply = {'0'}
for group in string.gmatch(redis.call('HGET', KEYS[1], ARGV[1]) or '', '%S+') do
  local field = ARGV[1] .. '\n' .. group
  local row = redis.call('HGET', KEYS[1], field)
  if row then
    reply[#reply + 1] = field
    reply[#reply + 1] = row
  end
end
return reply

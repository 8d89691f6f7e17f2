#!lua flags=no-writes
-- How many suspects wait to be run alone.
-- KEYS: 1 paused, 2... lane suspect of each task
-- ARGV: for each task: its name
-- Returns: their number; a paused task's are not counted
-- Errors: none
-- include: pass_over
pass_over('set', 1)
local waiting = 0
for position = 1, #ARGV do
  local stream = KEYS[1 + position]
  local length = redis.pcall('XLEN', stream)
  if type(length) == 'number' and length > 0 and redis.call('SISMEMBER', KEYS[1], ARGV[position]) == 0 then
    local summary = redis.pcall('XPENDING', stream, 'w')
    waiting = waiting + math.max(0, length - (summary.err and 0 or summary[1]))
  end
end
return waiting

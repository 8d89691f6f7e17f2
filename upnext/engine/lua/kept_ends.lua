#!lua flags=no-writes
-- The newest ends of some tasks that are kept by id: successes, and those of each group of other ends. Of one job perhaps several.
-- KEYS: 1 groups, 2 groups:ids, 3... successes of each task
-- ARGV: 1 letters of the statuses wanted (d done, f failed, c cancelled, x dead), 2 group ('': any), 3 most ends, 4... those tasks
-- Returns: {how many of the tasks were looked at, then triples, newest first: job id, letter, ms}
-- Errors: none
-- include: pass_over
pass_over('hash', 1, 2)
for at = 3, #KEYS do
  pass_over('list', at)
end
local MOST_LINES = 1000 -- and those of one task more
local found, lines, looked_at = {}, 0, 0
local function add(line, letter)
  lines = lines + 1
  local ms, job = string.match(line, '^(%d+) (.+)$')
  if ms then
    found[#found + 1] = {tonumber(ms), job, letter}
  end
end
for at = 4, #ARGV do
  if lines >= MOST_LINES then
    break
  end
  looked_at = looked_at + 1
  local task = ARGV[at]
  if ARGV[2] == '' and string.find(ARGV[1], 'd', 1, true) then
    for _, line in ipairs(redis.call('LRANGE', KEYS[at - 1], 0, 99)) do
      add(line, 'd')
    end
  end
  for group in string.gmatch(redis.call('HGET', KEYS[1], task) or '', '%S+') do
    local field = task .. '\n' .. group
    local letter = string.match(redis.call('HGET', KEYS[1], field) or '', '^%d+ %d+ %d+ (%l) ')
    if letter and string.find(ARGV[1], letter, 1, true) and (ARGV[2] == '' or ARGV[2] == group) then
      for line in string.gmatch(redis.call('HGET', KEYS[2], field) or '', '[^\n]+') do
        add(line, letter)
      end
    end
  end
end
table.sort(found, function(one, other)
  if one[1] ~= other[1] then
    return one[1] > other[1]
  end
  return one[2] > other[2]
end)
local reply = {looked_at}
for at = 1, math.min(#found, tonumber(ARGV[3])) do
  local size = #reply
  reply[size + 1], reply[size + 2], reply[size + 3] = found[at][2], found[at][3], string.format('%.0f', found[at][1])
end
return reply

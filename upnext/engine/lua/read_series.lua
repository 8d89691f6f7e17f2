#!lua flags=no-writes
-- Samples and times of some moments, of one task or of all.
-- KEYS: 1 series:last:, 2... series of each moment and its times
-- ARGV: 1 task ('': all), 2 most bytes read
-- Returns: {the last rows written: {task, row, ...}, then for each moment two: samples {task, row, ...}, times {task, counts, ...}}; of the first
--           moments only, where they hold more: at least one
-- Errors: none
-- include: pass_over
for at = 1, #KEYS do
  pass_over('hash', at)
end
local left = tonumber(ARGV[2])
local function rows(key)
  local found
  if ARGV[1] == '' then
    found = redis.call('HGETALL', key)
  else
    found = {}
    for _, field in ipairs({'=', ARGV[1]}) do
      local row = redis.call('HGET', key, field)
      if row then
        found[#found + 1] = field
        found[#found + 1] = row
      end
    end
  end
  for _, part in ipairs(found) do
    left = left - #part
  end
  return found
end
local reply = {rows(KEYS[1])}
for at = 2, #KEYS, 2 do
  if at > 2 and left <= 0 then
    break
  end
  reply[at], reply[at + 1] = rows(KEYS[at]), rows(KEYS[at + 1])
end
return reply

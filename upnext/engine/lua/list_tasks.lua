#!lua flags=no-writes
-- A page of the registered tasks with their depths and counters.
-- KEYS: 1 tasks, 2 stats, 3 limits, 4 paused, 5... rate buckets
-- ARGV: 1 stream prefix, 2 cursor, 3 about how many tasks, 4... words of the counters in stats
-- Returns: {next cursor, then for each task a list: its name, definition, limits or nil, 1 when paused, jobs in its lanes, jobs held by consumers,
--           ends in all the buckets, then each counter's value or nil}
-- Errors: none
-- include: pass_over
pass_over('hash', 1, 2, 3)
pass_over('set', 4)
for bucket = 5, #KEYS do
  pass_over('hash', bucket)
end
local scanned = redis.call('HSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
local reply, tasks, ends = {scanned[1]}, {}, {}
for at = 1, #scanned[2], 2 do
  tasks[#tasks + 1] = scanned[2][at]
end
if #tasks == 0 then
  return reply
end
for bucket = 5, #KEYS do
  for number, count in ipairs(redis.call('HMGET', KEYS[bucket], unpack(tasks))) do
    ends[number] = (ends[number] or 0) + (tonumber(count) or 0)
  end
end
local limits = redis.call('HMGET', KEYS[3], unpack(tasks))
local paused = redis.call('SMISMEMBER', KEYS[4], unpack(tasks))
for number, task in ipairs(tasks) do
  local stored, held = 0, 0
  for lane in string.gmatch('nhbx', '.') do
    local stream = ARGV[1] .. task .. ':' .. lane
    local length = redis.pcall('XLEN', stream)
    if type(length) == 'number' and length > 0 then
      local pending = redis.pcall('XPENDING', stream, 'w')
      stored, held = stored + length, held + (pending.err and 0 or pending[1])
    end
  end
  local counters = {}
  for word = 4, #ARGV do
    counters[#counters + 1] = task .. ':' .. ARGV[word]
  end
  local row = {task, scanned[2][2 * number], limits[number], paused[number], stored, held, ends[number] or 0}
  for _, count in ipairs(redis.call('HMGET', KEYS[2], unpack(counters))) do
    row[#row + 1] = count
  end
  reply[#reply + 1] = row
end
return reply

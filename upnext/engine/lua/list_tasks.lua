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
local reply = {scanned[1]}
for at = 1, #scanned[2], 2 do
  local task = scanned[2][at]
  local stored, held, ends = 0, 0, 0
  for lane in string.gmatch('nhbx', '.') do
    local stream = ARGV[1] .. task .. ':' .. lane
    local length = redis.pcall('XLEN', stream)
    stored = stored + (type(length) == 'number' and length or 0)
    local pending = redis.pcall('XPENDING', stream, 'w')
    held = held + (pending.err and 0 or pending[1])
  end
  for bucket = 5, #KEYS do
    ends = ends + (tonumber(redis.call('HGET', KEYS[bucket], task)) or 0)
  end
  local counters = {}
  for word = 4, #ARGV do
    counters[#counters + 1] = task .. ':' .. ARGV[word]
  end
  local row = {
    task, scanned[2][at + 1], redis.call('HGET', KEYS[3], task), redis.call('SISMEMBER', KEYS[4], task), stored, held, ends,
  }
  for _, count in ipairs(redis.call('HMGET', KEYS[2], unpack(counters))) do
    row[#row + 1] = count
  end
  reply[#reply + 1] = row
end
return reply

#!lua flags=no-writes
-- All registered tasks with their depths and counters.
-- KEYS: 1 tasks, 2 stats, 3 limits, 4 paused, 5... rate buckets
-- ARGV: 1 stream prefix
-- Returns: {server ms, {task, definition, ...}, {name, count, ...}, {task, limits, ...}, {paused task, ...},
--           {task, ends in all the buckets, ...}, {task, jobs in its lanes, jobs held by consumers, ...}}
-- Errors: none
local time = redis.call('TIME')
local tasks = redis.call('HGETALL', KEYS[1])
local depths = {}
for at = 1, #tasks, 2 do
  local all, held = 0, 0
  for lane in string.gmatch('nhbx', '.') do
    local stream = ARGV[1] .. tasks[at] .. ':' .. lane
    all = all + redis.call('XLEN', stream)
    local pending = redis.pcall('XPENDING', stream, 'w')
    held = held + (pending.err and 0 or pending[1])
  end
  local size = #depths
  depths[size + 1], depths[size + 2], depths[size + 3] = tasks[at], all, held
end
local ends, rates = {}, {}
for at = 5, #KEYS do
  local bucket = redis.call('HGETALL', KEYS[at])
  for index = 1, #bucket, 2 do
    ends[bucket[index]] = (ends[bucket[index]] or 0) + tonumber(bucket[index + 1])
  end
end
for task, count in pairs(ends) do
  rates[#rates + 1] = task
  rates[#rates + 1] = count
end
return {
  time[1] * 1000 + math.floor(time[2] / 1000), tasks, redis.call('HGETALL', KEYS[2]), redis.call('HGETALL', KEYS[3]),
  redis.call('SMEMBERS', KEYS[4]), rates, depths,
}

#!lua flags=no-writes
-- What may hold a queued job back.
-- KEYS: 1 paused, 2 limits, 3 gcra, 4 leases, 5 consumers, 6 lingering, 7... lanes normal, high, back, suspect of its task
-- ARGV: 1 task, 2 lane letter it waits in, 3 its entry id, 4 most entries counted, 5 most bytes read, from either end
-- Returns: {server us, paused 1|0, limits or nil, theoretical arrival time us or nil, jobs of the task that consumers hold,
--           entries waiting before it (-1: more than could be counted from either end), entries waiting in the lane, then the records of living
--           consumers}
-- Errors: none
-- include: last_fetched
-- include: lingering
-- include: walk
-- include: pass_over
pass_over('set', 1)
pass_over('hash', 2, 3, 5, 6)
pass_over('zset', 4)
pass_over('stream', 7, 8, 9, 10)
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local held = lingering(KEYS[6], ARGV[1])
for lane = 7, 10 do
  local pending = redis.pcall('XPENDING', KEYS[lane], 'w')
  held = held + (pending.err and 0 or pending[1])
end
local stream = KEYS[({n = 7, h = 8, b = 9, x = 10})[ARGV[2]]]
local function pass()
end
local most, most_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local summary = redis.pcall('XPENDING', stream, 'w')
local waiting = redis.call('XLEN', stream) - (summary.err and 0 or summary[1])
local ahead, more = walk(stream, '(' .. last_fetched(stream), '(' .. ARGV[3], most, most_bytes, false, pass)
if more then
  local behind, more_behind = walk(stream, '(' .. ARGV[3], '+', most, most_bytes, true, pass)
  ahead = more_behind and -1 or waiting - 1 - behind
end
local reply = {
  string.format('%.0f', time[1] * 1000000 + time[2]), redis.call('SISMEMBER', KEYS[1], ARGV[1]), redis.call('HGET', KEYS[2], ARGV[1]),
  redis.call('HGET', KEYS[3], ARGV[1]), held, ahead, waiting,
}
local living = redis.call('ZRANGEBYSCORE', KEYS[4], now_ms, '+inf')
for from = 1, #living, 1000 do
  for _, record in ipairs(redis.call('HMGET', KEYS[5], unpack(living, from, math.min(from + 999, #living)))) do
    if record then
      reply[#reply + 1] = record
    end
  end
end
return reply

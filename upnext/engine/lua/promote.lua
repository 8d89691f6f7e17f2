#!lua flags=allow-oom
-- Moves due jobs from the delayed set into their lanes, by the server's clock; never early. Any scheduler may.
-- KEYS: 1 epoch, 2 delayed, 3 delayed:jobs, 4 where, 5 limits
-- ARGV: 1 epoch, 2 stream prefix, 3 bell channel, 4 most jobs in this run
-- Returns: {jobs promoted, us until the next is due (-1: none; 0: more are due now)}
-- Errors: EPOCH
-- include: epoch
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now_us), 'LIMIT', 0, ARGV[4])
local rung = {}
for _, job in ipairs(due) do
  local packed = redis.call('HGET', KEYS[3], job)
  redis.call('ZREM', KEYS[2], job)
  if packed then
    redis.call('HDEL', KEYS[3], job)
    local lane, size, start = string.match(packed, '^(%l)(%d+):()')
    size = tonumber(size)
    local meta = size > 0 and cjson.decode(string.sub(packed, start, start + size - 1)) or {}
    meta.i = job
    local task = string.match(job, '^(.*):[^:]*$')
    local id = redis.call('XADD', ARGV[2] .. task .. ':' .. lane, '*', 'p1', string.sub(packed, start + size), 'm', cjson.encode(meta))
    redis.call('HSET', KEYS[4], job, lane .. ' ' .. id)
    rung[task] = true
  end
end
for task, _ in pairs(rung) do
  if redis.call('HEXISTS', KEYS[5], task) == 1 then
    redis.call('SPUBLISH', ARGV[3], 't' .. task)
  end
end
local head = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
return {#due, head and math.max(0, tonumber(head) - now_us) or -1}

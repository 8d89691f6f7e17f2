#!lua flags=allow-oom
-- Moves due jobs from the delayed set into their lanes, by the server's clock; never early. Any scheduler may.
-- What can't be read as a job goes into its task's lane as it is: the worker that takes it keeps it as a dead letter. A job whose lane takes nothing is put off.
-- KEYS: 1 epoch, 2 delayed, 3 delayed:jobs, 4 where, 5 limits
-- ARGV: 1 epoch, 2 stream prefix, 3 bell channel, 4 most jobs in this run, 5 most bytes
-- Returns: {jobs promoted, us until the next is due (-1: none; 0: more are due now), then pairs: a job that was put off, what its lane says}
-- Errors: EPOCH
-- include: epoch
-- include: must_be
-- include: unpack_job
-- include: put_entry
local PUT_OFF_US = 10000000
must_be('zset', KEYS[2])
must_be('hash', KEYS[3], KEYS[4], KEYS[5])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now_us), 'LIMIT', 0, ARGV[4])
local rung, put_off, promoted, left = {}, {}, 0, tonumber(ARGV[5])
for _, job in ipairs(due) do
  if left <= 0 then
    break
  end
  local packed = redis.call('HGET', KEYS[3], job)
  left = left - #(packed or '')
  local id, why
  if packed then
    local task = string.match(job, '^(.*):[^:]*$') or ''
    local lane, meta, payload = unpack_job(packed)
    if lane then
      meta.i = job
      id, why = put_entry(ARGV[2] .. task .. ':' .. lane, {'p1', payload, 'm', cjson.encode(meta)})
    else
      lane = 'n'
      id, why = put_entry(ARGV[2] .. task .. ':n', {'packed', packed})
    end
    if id then
      redis.call('HSET', KEYS[4], job, lane .. ' ' .. id)
      redis.call('HDEL', KEYS[3], job)
      rung[task] = true
      promoted = promoted + 1
    end
  end
  if why then
    redis.call('ZADD', KEYS[2], string.format('%.0f', now_us + PUT_OFF_US), job)
    put_off[#put_off + 1] = job
    put_off[#put_off + 1] = why
  else
    redis.call('ZREM', KEYS[2], job)
  end
end
for task, _ in pairs(rung) do
  if redis.call('HEXISTS', KEYS[5], task) == 1 then
    redis.call('SPUBLISH', ARGV[3], 't' .. task)
  end
end
local head = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
-- A score that is not a time (infinite, of a hand) must not keep the scheduler asleep.
local wait_us = head and math.min(3600000000, math.max(0, tonumber(head) - now_us)) or -1
return {promoted, wait_us, unpack(put_off)}

#!lua flags=allow-oom
-- Queues dead letters again, each under its own job id, as a first attempt without crashes, in the lane it was born for.
-- KEYS: 1 dead, 2 dead:jobs, 3 where, 4 limits, 5 notes, 6 dead:bytes, 7 f:
-- ARGV: 1 stream prefix, 2 result prefix, 3 bell channel, 4 most bytes, 5... job ids
-- Returns: {how many of the ids were looked at, in their order, then those of them that were no dead letters, or whose lane takes nothing more: they are
--           dead letters still}
-- Errors: what the lane says, when no job could be queued for it
-- include: must_be
-- include: unpack_job
-- include: put_entry
-- include: dead_total
-- include: flow
must_be('zset', KEYS[1])
must_be('hash', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
local keys = {dead = KEYS[1], dead_jobs = KEYS[2], notes = KEYS[5], dead_bytes = KEYS[6], flow = KEYS[7]}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local count, bytes = dead_total(keys)
local unknown, problem, retried, left = {0}, nil, 0, tonumber(ARGV[4])
for at = 5, #ARGV do
  if left <= 0 then
    break
  end
  local job = ARGV[at]
  unknown[1] = at - 4
  left = left - redis.call('HSTRLEN', KEYS[2], job)
  local lane, old, payload = unpack_job(redis.call('HGET', KEYS[2], job))
  if not lane then
    unknown[#unknown + 1] = job
  else
    local meta = {i = job, p = old.p, r = old.r, t = old.t, o = old.o, u = old.u}
    if redis.call('HEXISTS', KEYS[5], job) == 1 then
      meta.n = 1
    end
    local task = string.match(job, '^(.*):[^:]*$') or ''
    local entry, why = put_entry(ARGV[1] .. task .. ':' .. lane, {'p1', payload, 'm', cjson.encode(meta)})
    if entry then
      count, bytes = count - 1, bytes - dead_size(keys, job)
      redis.call('HSET', KEYS[3], job, lane .. ' ' .. entry)
      redis.call('HDEL', KEYS[2], job)
      redis.call('ZREM', KEYS[1], job)
      redis.call('DEL', ARGV[2] .. job)
      retried = retried + 1
      note_child(keys, now, 'o', job, old)
      if redis.call('HEXISTS', KEYS[4], task) == 1 then
        redis.call('SPUBLISH', ARGV[3], 't' .. task)
      end
    else
      problem = why
      unknown[#unknown + 1] = job
    end
  end
end
keep_dead_total(keys, count, bytes)
if problem and retried == 0 then
  return redis.error_reply(problem)
end
return unknown

#!lua flags=allow-oom
-- Queues dead letters again, each under its own job id, as a first attempt without crashes, in the lane it was born for.
-- KEYS: 1 dead, 2 dead:jobs, 3 where, 4 limits
-- ARGV: 1 stream prefix, 2 result prefix, 3 bell channel, 4... job ids
-- Returns: the ids that were no dead letters
-- Errors: none
local unknown = {}
for at = 4, #ARGV do
  local job = ARGV[at]
  local packed = redis.call('HGET', KEYS[2], job)
  local lane, size, start = string.match(packed or '', '^(%l)(%d+):()')
  if not lane then
    unknown[#unknown + 1] = job
  else
    size = tonumber(size)
    local old = size > 0 and cjson.decode(string.sub(packed, start, start + size - 1)) or {}
    local meta = {i = job, p = old.p, r = old.r, t = old.t, o = old.o}
    local task = string.match(job, '^(.*):[^:]*$')
    local stream = ARGV[1] .. task .. ':' .. lane
    local entry = redis.call('XADD', stream, '*', 'p1', string.sub(packed, start + size), 'm', cjson.encode(meta))
    redis.call('HSET', KEYS[3], job, lane .. ' ' .. entry)
    redis.call('HDEL', KEYS[2], job)
    redis.call('ZREM', KEYS[1], job)
    redis.call('DEL', ARGV[2] .. job)
    if redis.call('HEXISTS', KEYS[4], task) == 1 then
      redis.call('SPUBLISH', ARGV[3], 't' .. task)
    end
  end
end
return unknown

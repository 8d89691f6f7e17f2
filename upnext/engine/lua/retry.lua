#!lua flags=allow-oom
-- Puts failed attempts back to run again after a delay. Fenced by the entry id. A job whose cancel was asked for meanwhile is left to its holder.
-- KEYS: 1 epoch, 2 where, 3 delayed, 4 delayed:jobs, 5 cancel, 6 stats, 7 limits, 8 notes, 9... streams
-- ARGV: 1 epoch, 2 bell channel, then for each stream: its task; then for each job seven: index of its stream from 1, entry id, job id, own lane letter,
--       meta of the next attempt (JSON), delay ms, its notes where they are new, else ''
-- Returns: for each job, in their order and for at most about 1 MiB of them, 1 (put back), 0 (not ours any more), 2 (a cancel was asked for: nothing was changed, finish it as cancelled)
-- Errors: EPOCH
-- include: epoch
-- include: must_be
must_be('hash', KEYS[2], KEYS[4], KEYS[5], KEYS[8])
must_be('zset', KEYS[3])
must_be('stream', unpack(KEYS, 9))
local limited = {}
for _, task in ipairs(redis.call('HKEYS', KEYS[7])) do
  limited[task] = true
end
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local streams = #KEYS - 8
local head = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
head = head and tonumber(head)
local ring, freed = false, {}
local done, left = {}, 1048576
for at = 3 + streams, #ARGV, 7 do
  if left <= 0 then
    break
  end
  local index, entry, job, lane, meta = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local stream = KEYS[8 + index]
  local answer = 1
  if redis.call('HEXISTS', KEYS[5], job) == 1 then
    answer = 2
  elseif redis.call('XACK', stream, 'w', entry) == 0 then
    answer = 0
  else
    local found = redis.call('XRANGE', stream, entry, entry)
    local payload = found[1] and found[1][2][2] or '{}'
    left = left - #payload
    redis.call('XDEL', stream, entry)
    local due = now_us + ARGV[at + 5] * 1000
    redis.call('HSET', KEYS[4], job, lane .. #meta .. ':' .. meta .. payload)
    redis.call('ZADD', KEYS[3], string.format('%.0f', due), job)
    redis.call('HDEL', KEYS[2], job)
    if ARGV[at + 6] ~= '' then
      redis.call('HSET', KEYS[8], job, ARGV[at + 6])
    end
    redis.pcall('HINCRBY', KEYS[6], ARGV[2 + index] .. ':retried', 1)
    freed[ARGV[2 + index]] = true
    if not head or due < head then
      head = due
      ring = true
    end
  end
  done[#done + 1] = answer
end
if ring then
  redis.call('SPUBLISH', ARGV[2], 'd')
end
for task, _ in pairs(freed) do
  if limited[task] then
    redis.call('SPUBLISH', ARGV[2], 't' .. task)
  end
end
return done

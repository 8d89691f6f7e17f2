#!lua flags=allow-oom
-- Ends jobs that had ended before the broker went back in time, wherever they are now. A job that isn't anywhere is left alone: it has ended.
-- KEYS: 1 epoch, 2 where, 3 waiters, 4 dead, 5 dead:jobs, 6 cancel, 7 stats, 8 notes, 9 dead:bytes, 10 groups, 11 groups:ids, 12 f:, 13 ended:,
--       14 delayed, 15 delayed:jobs, 16 ends, 17... four streams per task
-- ARGV: 1 epoch, 2 result prefix, 3 idempotency prefix, 4 reply prefix, 5 number of tasks, then for each task two: name, result ttl ms; then for each job
--       six: index of its task from 1, status letter (d done, f failed, c cancelled, x dead), lane letter and entry id in which it ended (`n 1-0`), job id,
--       outcome, extra (as for finish)
-- Returns: the number of jobs that were ended again
-- Errors: EPOCH
-- include: epoch
-- include: must_be
-- include: dead_total
-- include: end_job
-- include: ends
-- include: flow
local FIRST = 16
must_be('hash', KEYS[2], KEYS[3], KEYS[5], KEYS[6], KEYS[8], KEYS[15])
must_be('zset', KEYS[4], KEYS[14])
must_be('stream', unpack(KEYS, FIRST + 1))
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local keys = {
  where = KEYS[2], waiters = KEYS[3], dead = KEYS[4], dead_jobs = KEYS[5], cancel = KEYS[6], notes = KEYS[8], dead_bytes = KEYS[9],
  groups = KEYS[10], group_ids = KEYS[11], flow = KEYS[12], ended = KEYS[13],
  result = ARGV[2], idem = ARGV[3], reply = ARGV[4], have_waiters = true, have_cancels = true,
}
local tasks = tonumber(ARGV[5])
local LANES = {n = 1, h = 2, b = 3, x = 4}
local WORDS = {d = 'done', f = 'failed', c = 'cancelled', x = 'dead'}
local ends = {}

-- -> payload, when the entry was there
local function take(index, lane, entry)
  local number = LANES[lane]
  local stream = number and KEYS[FIRST + 4 * (index - 1) + number]
  local found = stream and redis.call('XRANGE', stream, entry, entry)[1]
  if found then
    redis.call('XACK', stream, 'w', entry)
    redis.call('XDEL', stream, entry)
    return found[2][2] or '{}'
  end
end

-- Where else a job may be that ended well: where it was before it moved, or not yet promoted. One that was kept as a dead letter may have been
-- retried since, and live again.
local function take_elsewhere(index, job)
  local place = redis.call('HGET', KEYS[2], job)
  if place then
    local lane, entry = string.match(place, '^(%l) (%S+)$')
    local payload = lane and take(index, lane, entry)
    if payload then
      return payload
    end
  end
  local lane, entry = string.match(job, ':(%l)([%d-]+)$')
  if LANES[lane] then
    local payload = take(index, lane, entry)
    if payload then
      return payload
    end
  end
  if redis.call('ZREM', KEYS[14], job) == 1 then
    redis.call('HDEL', KEYS[15], job)
    return '{}'
  end
end

local again = 0
for at = 6 + 2 * tasks, #ARGV, 6 do
  local index, letter, job, outcome = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 3], ARGV[at + 4]
  local lane, entry = string.match(ARGV[at + 2], '^(%l) (%S+)$')
  local task, ttl = ARGV[4 + 2 * index], tonumber(ARGV[5 + 2 * index])
  local meta = cjson.decode(ARGV[at + 5])
  local payload = take(index, lane, entry) or (not meta.bury and take_elsewhere(index, job))
  if payload then
    local packed = meta.bury and ((meta.l or lane) .. #meta.dead .. ':' .. meta.dead .. payload) or nil
    end_job(keys, now, job, outcome, meta.ttl or ttl, meta, packed, true)
    redis.pcall('HINCRBY', KEYS[7], task .. ':' .. WORDS[letter], 1)
    again = again + 1
    note_child(keys, now, letter, job, meta)
    if letter ~= 'd' and meta.g then
      note_end(task, letter, job, meta.g, meta.about)
    end
    if #ends < 64 then
      ends[#ends + 1] = letter .. job
    end
  end
end
keep_ends(keys, now)
if #ends > 0 then
  redis.pcall('XADD', KEYS[16], 'MAXLEN', '~', 256, '*', 'j', table.concat(ends, '\n'))
end
return again

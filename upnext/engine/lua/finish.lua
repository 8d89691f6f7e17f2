#!lua flags=allow-oom
-- Ends jobs: the one terminal write of their holder. Fenced: an entry that is no longer pending is another owner's, and nothing is written for it.
-- KEYS: 1 epoch, 2 where, 3 waiters, 4 dead, 5 dead:jobs, 6 cancel, 7 stats, 8 rate bucket, 9 ends, 10 limits, 11... streams
-- ARGV: 1 epoch, 2 result prefix, 3 idempotency prefix, 4 reply prefix, 5 bell channel, 6 now ms of the caller's clock (for dead letters' times),
--       then for each stream three: task, lane letter, result ttl ms; then for each job five: index of its stream from 1, entry id,
--       status letter (d done, f failed, c cancelled, x dead), outcome, extra ('' or JSON of its meta; `bury` keeps a dead letter;
--       `dead` is that letter's meta as text)
-- Returns: the positions (from 1) of the jobs that were not ours any more
-- Errors: EPOCH
-- include: epoch
-- include: end_job
local result, idem, reply, bell = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local now = tonumber(ARGV[6])
local keys = {
  where = KEYS[2], waiters = KEYS[3], dead = KEYS[4], dead_jobs = KEYS[5], cancel = KEYS[6],
  result = result, idem = idem, reply = reply,
  have_waiters = redis.call('HLEN', KEYS[3]) > 0, have_cancels = redis.call('HLEN', KEYS[6]) > 0,
}
local first = 10
local streams = #KEYS - first
local stale, counts, gone, ends = {}, {}, {}, {}
local position = 0
local WORDS = {d = 'done', f = 'failed', c = 'cancelled', x = 'dead'}
for at = 7 + 3 * streams, #ARGV, 5 do
  position = position + 1
  local index, entry = tonumber(ARGV[at]), ARGV[at + 1]
  local stream = KEYS[first + index]
  if redis.call('XACK', stream, 'w', entry) == 0 then
    stale[#stale + 1] = position
  else
    local told = 7 + 3 * (index - 1)
    local task, lane, ttl = ARGV[told], ARGV[told + 1], tonumber(ARGV[told + 2])
    local letter, outcome, extra = ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
    local job
    if extra == '' then
      job = task .. ':' .. lane .. entry
      if ttl > 0 then
        redis.call('SET', result .. job, outcome, 'PX', ttl)
      end
      if keys.have_waiters or keys.have_cancels then
        end_job(keys, now, job, outcome, 0, {}, nil, false)
      end
    else
      local meta = cjson.decode(extra)
      job = meta.i or (task .. ':' .. lane .. entry)
      local packed
      if meta.bury then
        local found = redis.call('XRANGE', stream, entry, entry)
        local payload = found[1] and found[1][2][2] or '{}'
        packed = (meta.l or lane) .. #meta.dead .. ':' .. meta.dead .. payload
      end
      end_job(keys, now, job, outcome, ttl, meta, packed, meta.i ~= nil)
    end
    local list = gone[index]
    if not list then
      list = {}
      gone[index] = list
    end
    list[#list + 1] = entry
    local count = counts[task]
    if not count then
      count = {d = 0, f = 0, c = 0, x = 0}
      counts[task] = count
    end
    count[letter] = count[letter] + 1
    if #ends < 64 then
      ends[#ends + 1] = letter .. job
    end
  end
end
for index, list in pairs(gone) do
  for from = 1, #list, 1000 do
    redis.call('XDEL', KEYS[first + index], unpack(list, from, math.min(from + 999, #list)))
  end
end
for task, count in pairs(counts) do
  local total = 0
  for letter, word in pairs(WORDS) do
    if count[letter] > 0 then
      redis.call('HINCRBY', KEYS[7], task .. ':' .. word, count[letter])
      total = total + count[letter]
    end
  end
  redis.call('HINCRBY', KEYS[8], task, total)
  if redis.call('HEXISTS', KEYS[10], task) == 1 then
    redis.call('PUBLISH', bell, 't' .. task)
  end
end
if #ends > 0 then
  redis.call('EXPIRE', KEYS[8], 120)
  redis.call('XADD', KEYS[9], 'MAXLEN', '~', 256, '*', 'j', table.concat(ends, '\n'))
end
return stale

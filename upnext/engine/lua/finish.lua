#!lua flags=allow-oom
-- Ends jobs: the one terminal write of their holder. Fenced: an entry that is no longer pending is another owner's, and nothing is written for it.
-- KEYS: 1 epoch, 2 where, 3 waiters, 4 dead, 5 dead:jobs, 6 cancel, 7 stats, 8 notes, 9 dead:bytes, 10 groups, 11 groups:ids, 12 f:, 13 ended:, 14 rate bucket,
--       15 ends, 16 limits, 17... streams
-- ARGV: 1 epoch, 2 result prefix, 3 idempotency prefix, 4 reply prefix, 5 bell channel, 6 now ms of the caller's clock (for dead letters' times),
--       7 cache prefix, 8 done prefix, then for each stream three: task, lane letter, result ttl ms; then groups. Jobs of which there is nothing to say but their outcome:
--       'p', index of the stream from 1, status letter (d done, f failed, c cancelled, x dead), number of jobs, then for each: entry id, outcome.
--       One job with more to it: 's', index, status letter, entry id, outcome, extra (JSON of its meta; `bury` keeps a dead letter, `dead` is
--       that letter's meta as text; `n` is true when something was noted of the job, or the newest notes of a dead letter; `cache` is the key that finds the outcome for `cache_ttl` ms;
--       `g`, `about`: the group of an end that is no success, and what is common to it)
-- Returns: the positions (from 1, in the order of ARGV) of the jobs that were not ours any more
-- Errors: EPOCH
-- include: epoch
-- include: must_be
-- include: dead_total
-- include: end_job
-- include: ends
-- include: flow
local result, bell = ARGV[2], ARGV[5]
local now = tonumber(ARGV[6])
local keys = {
  where = KEYS[2], waiters = KEYS[3], dead = KEYS[4], dead_jobs = KEYS[5], cancel = KEYS[6], notes = KEYS[8], dead_bytes = KEYS[9],
  groups = KEYS[10], group_ids = KEYS[11], flow = KEYS[12], ended = KEYS[13], done = ARGV[8],
  result = result, idem = ARGV[3], reply = ARGV[4],
  have_waiters = redis.call('HLEN', KEYS[3]) > 0, have_cancels = redis.call('HLEN', KEYS[6]) > 0,
}
local watched = keys.have_waiters or keys.have_cancels
local FIRST = 16
local streams = #KEYS - FIRST
must_be('hash', KEYS[2], KEYS[5], KEYS[8], KEYS[16])
must_be('zset', KEYS[4])
must_be('stream', unpack(KEYS, FIRST + 1))
local stale, counts, ends, successes = {}, {}, {}, {}
local gone = {} -- per stream: ids to delete, the highest of them, whether each was found pending
local position = 0
local stamp = string.format('%.0f ', now)
local NOTHING = {}

-- The newest successes of a task, up to 100.
local function succeeded(task, prefix, ids)
  local list = successes[task]
  if not list then
    list = {}
    successes[task] = list
  end
  for job = math.max(1, #ids - 99), #ids do
    list[#list + 1] = stamp .. prefix .. ids[job]
  end
end

local function ended(index, letter, ids, all_pending)
  if #ids == 0 then
    return
  end
  local list = gone[index]
  if not list then
    list = {all_pending = true}
    gone[index] = list
  end
  list.all_pending = list.all_pending and all_pending
  for at = 1, #ids do
    list[#list + 1] = ids[at]
  end
  local task = ARGV[9 + 3 * (index - 1)]
  local count = counts[task]
  if not count then
    count = {d = 0, f = 0, c = 0, x = 0}
    counts[task] = count
  end
  count[letter] = count[letter] + #ids
end

local at = 9 + 3 * streams
while at <= #ARGV do
  local index, letter = tonumber(ARGV[at + 1]), ARGV[at + 2]
  local stream, words = KEYS[FIRST + index], 9 + 3 * (index - 1)
  local lane_id, ttl = ARGV[words] .. ':' .. ARGV[words + 1], ARGV[words + 2]
  if ARGV[at] == 'p' then
    local count = tonumber(ARGV[at + 3])
    local ids, outcomes = {}, {}
    for job = 1, count do
      ids[job], outcomes[job] = ARGV[at + 2 + 2 * job], ARGV[at + 3 + 2 * job]
    end
    local all_pending = redis.call('XACK', stream, 'w', unpack(ids)) == count
    if not all_pending then
      -- a scheduler that took an entry over deleted it in the same step: the ones still there were ours
      local ours, their = {}, {}
      for job = 1, count do
        if #redis.call('XRANGE', stream, ids[job], ids[job]) > 0 then
          ours[#ours + 1], their[#their + 1] = ids[job], outcomes[job]
        else
          stale[#stale + 1] = position + job
        end
      end
      ids, outcomes = ours, their
    end
    local prefix = result .. lane_id
    if ttl ~= '0' then
      for job = 1, #ids do
        redis.call('SET', prefix .. ids[job], outcomes[job], 'PX', ttl)
      end
    end
    if watched then
      for job = 1, #ids do
        end_job(keys, now, lane_id .. ids[job], outcomes[job], 0, NOTHING, nil, false)
      end
    end
    for job = 1, math.min(#ids, 64 - #ends) do
      ends[#ends + 1] = letter .. lane_id .. ids[job]
    end
    if letter == 'd' then
      succeeded(ARGV[words], lane_id, ids)
    end
    ended(index, letter, ids, all_pending)
    position = position + count
    at = at + 4 + 2 * count
  else
    local entry, outcome = ARGV[at + 3], ARGV[at + 4]
    position = position + 1
    if redis.call('XACK', stream, 'w', entry) == 0 then
      stale[#stale + 1] = position
    else
      local meta = cjson.decode(ARGV[at + 5])
      local job = meta.i or (lane_id .. entry)
      local packed
      if meta.bury then
        local found = redis.call('XRANGE', stream, entry, entry)
        local payload = found[1] and found[1][2][2] or '{}'
        packed = (meta.l or ARGV[words + 1]) .. #meta.dead .. ':' .. meta.dead .. payload
      end
      if meta.cache then
        redis.call('SET', ARGV[7] .. meta.cache, outcome, 'PX', string.format('%.0f', meta.cache_ttl))
      end
      end_job(keys, now, job, outcome, meta.ttl or tonumber(ttl), meta, packed, meta.i ~= nil)
      if #ends < 64 then
        ends[#ends + 1] = letter .. job
      end
      if letter == 'd' then
        succeeded(ARGV[words], '', {job})
      else
        note_end(ARGV[words], letter, job, meta.g, meta.about)
      end
      note_child(keys, now, letter, job, meta)
      ended(index, letter, {entry}, true)
    end
    at = at + 6
  end
end

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function below(id, other)
  local ms, seq = parts(id)
  local other_ms, other_seq = parts(other)
  return ms < other_ms or (ms == other_ms and seq < other_seq)
end

-- Deleting entries one by one costs more than everything else here. What is below the first pending entry, and not above one that was pending, was
-- delivered and acknowledged: it is trimmed in one go.
for index, list in pairs(gone) do
  local stream = KEYS[FIRST + index]
  local rest = list
  if list.all_pending and #list > 8 then
    local first = redis.call('XPENDING', stream, 'w', '-', '+', 1)[1]
    local bound = first and first[1]
    if bound then
      rest = {}
      for job = 1, #list do
        if not below(list[job], bound) then
          rest[#rest + 1] = list[job]
        end
      end
    else
      local highest = list[1]
      for job = 2, #list do
        if below(highest, list[job]) then
          highest = list[job]
        end
      end
      local ms, seq = parts(highest)
      bound = string.format('%.0f-%.0f', ms, seq + 1)
      rest = NOTHING
    end
    redis.call('XTRIM', stream, 'MINID', '=', bound)
  end
  for from = 1, #rest, 1000 do
    redis.call('XDEL', stream, unpack(rest, from, math.min(from + 999, #rest)))
  end
end

local WORDS = {d = 'done', f = 'failed', c = 'cancelled', x = 'dead'}
for task, count in pairs(counts) do
  local total = 0
  for letter, word in pairs(WORDS) do
    if count[letter] > 0 then
      redis.pcall('HINCRBY', KEYS[7], task .. ':' .. word, count[letter])
      total = total + count[letter]
    end
  end
  redis.pcall('HINCRBY', KEYS[14], task, total)
  if redis.call('HEXISTS', KEYS[16], task) == 1 then
    redis.call('SPUBLISH', bell, 't' .. task)
  end
end
for task, list in pairs(successes) do
  local size = redis.pcall('LPUSH', keys.done .. task, unpack(list, math.max(1, #list - 99)))
  if type(size) == 'number' and size > 200 then
    redis.pcall('LTRIM', keys.done .. task, 0, 99)
  end
end
keep_ends(keys, now)
if #ends > 0 then
  redis.pcall('EXPIRE', KEYS[14], 120)
  redis.pcall('XADD', KEYS[15], 'MAXLEN', '~', 256, '*', 'j', table.concat(ends, '\n'))
end
return stale

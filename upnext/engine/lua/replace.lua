#!lua
-- Takes in a job in place of the one that has its key, where no worker has fetched that yet: the one before ends as cancelled, in the same step.
-- One that has been fetched, or tried before, goes on, and the new one is queued beside it. Either way the key is the new one's.
-- KEYS: 1 seq, 2 delayed, 3 delayed:jobs, 4 limits, 5 large, 6 where, 7 waiters, 8 dead, 9 dead:jobs, 10 cancel, 11 stats, 12 notes, 13 dead:bytes,
--       14 tasks, 15 groups, 16 groups:ids, 17 f:, 18 ended:, 19... the task's four lanes
-- ARGV: 1 bell channel, 2 idempotency prefix, 3 result prefix, 4 reply prefix, 5 task, 6 lane letter, 7 meta (JSON), 8 payload,
--       9 as the special of submit, with a key
-- Returns: {its first entry id; `dID` when it is delayed; `=JOB_ID NONCE` when this very submit has been done before; `!ERROR` when its lane takes
--          nothing, and the one before is as it was}
-- Errors: OOM
-- include: must_be
-- include: put_entry
-- include: large
-- include: delay_job
-- include: task_options
-- include: unpack_job
-- include: read_meta
-- include: dead_total
-- include: end_job
-- include: ends
-- include: flow
-- include: end_cancelled
local task, lane, payload, wish = ARGV[5], ARGV[6], ARGV[8], cjson.decode(ARGV[9])
local keys = {
  seq = KEYS[1], delayed = KEYS[2], delayed_jobs = KEYS[3], where = KEYS[6], waiters = KEYS[7], dead = KEYS[8], dead_jobs = KEYS[9],
  cancel = KEYS[10], stats = KEYS[11], notes = KEYS[12], dead_bytes = KEYS[13], tasks = KEYS[14],
  groups = KEYS[15], group_ids = KEYS[16], flow = KEYS[17], ended = KEYS[18],
  result = ARGV[3], idem = ARGV[2], reply = ARGV[4], have_waiters = true, have_cancels = true,
}
must_be('zset', KEYS[2], KEYS[8])
must_be('hash', KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[9], KEYS[10], KEYS[12], KEYS[14])
must_be('string', KEYS[1], KEYS[13])
local sent = redis.pcall('GET', wish.sent)
if type(sent) == 'string' then
  return {'=' .. sent}
end

local function stream_of(letter)
  return KEYS[18 + string.find('nhbx', letter, 1, true)]
end

local function untried(meta)
  return meta ~= nil and not (meta.a or meta.c or meta.h)
end

-- -> how to remove the job, its meta, whether it has moved; nothing for one that goes on, has ended, or can't be read
local function waiting(job)
  local packed = redis.call('HGET', KEYS[3], job)
  if packed then
    local _, meta = unpack_job(packed)
    return untried(meta) and function()
      redis.call('ZREM', KEYS[2], job)
      redis.call('HDEL', KEYS[3], job)
    end, meta, false
  end
  local letter, entry = string.match(string.sub(job, #task + 2), '^(%l)(.+)$')
  local place = redis.call('HGET', KEYS[6], job)
  if place then
    letter, entry = string.match(place, '^(%l) (%S+)$')
  end
  if not letter or not string.find('nhb', letter, 1, true) then
    return nil
  end
  local stream = stream_of(letter)
  local found = redis.pcall('XRANGE', stream, entry, entry)
  if found.err or not found[1] then
    return nil
  end
  local pending = redis.pcall('XPENDING', stream, 'w', entry, entry, 1)
  if not pending.err and #pending > 0 then
    return nil
  end
  local meta = read_meta(found[1][2])
  return untried(meta) and (letter ~= 'b' or meta.b) and function()
    redis.call('XDEL', stream, entry)
  end, meta, place ~= false
end

local held = redis.pcall('GET', keys.idem .. wish.key)
local before = type(held) == 'string' and string.match(held, '^%S+') or ''
local remove, its_meta, moved
if string.sub(before, 1, #task + 1) == task .. ':' then
  remove, its_meta, moved = waiting(before)
end

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local due = wish.at or (wish.delay and now_us + wish.delay)
local meta = expiring(ARGV[7], wish.ttl, due, now_us)
local head = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
local id, job
if due then
  mend_seq(keys)
  id = delay_job(keys, task, lane, meta, payload, due, now_us)
  job = task .. ':' .. id
else
  local why
  id, why = put_entry(stream_of(lane), {'p1', payload, 'm', meta})
  if not id then
    return {'!' .. why}
  end
  job = task .. ':' .. lane .. id
end
if is_largest(KEYS[5], task, #payload) then
  redis.call('HSET', KEYS[5], task, #payload)
end
if remove then
  remove()
  end_cancelled(keys, now, task, before, its_meta, moved, nil, 'replaced', 'replaced by ' .. job)
  keep_ends(keys, now)
end
note_child(keys, now, 'o', job, cjson.decode(meta))
local holder = job .. ' ' .. wish.nonce
redis.call('SET', keys.idem .. wish.key, holder, 'PX', wish.key_ttl)
redis.call('SET', wish.sent, holder, 'PX', wish.sent_ttl)
if due and (not head or due < tonumber(head)) then
  redis.call('SPUBLISH', ARGV[1], 'd')
end
if redis.call('HEXISTS', KEYS[4], task) == 1 then
  redis.call('SPUBLISH', ARGV[1], 't' .. task)
end
return {id}

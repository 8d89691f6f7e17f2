#!lua
-- Takes jobs in: one stream entry each, or a place in the delayed set. Refused as a whole by a full Redis (no allow-oom).
-- KEYS: 1 seq, 2 delayed, 3 delayed:jobs, 4 limits, 5 large, 6 f:, 7... one stream per (task, lane) that the jobs name
-- ARGV: 1 bell channel, 2 idempotency key prefix, then for each stream of KEYS: its task; then for each job four:
--       index of its stream from 1, meta (JSON or ''), payload, special ('' or JSON {at, delay: us; ttl, key, key_ttl: ms; nonce, sent: key
--       that remembers this very submit, for a repeat whose first reply was lost while its job may have ended, sent_ttl: ms})
-- Returns: for each job its first entry id; `dID` when it is delayed; `=JOB_ID NONCE` when its key is held; `!ERROR` when its lane takes nothing
-- Errors: OOM
-- include: must_be
-- include: put_entry
-- include: large
-- include: flow
-- include: delay_job
local keys = {seq = KEYS[1], delayed = KEYS[2], delayed_jobs = KEYS[3], flow = KEYS[6]}
local delayed, delayed_jobs, limits = KEYS[2], KEYS[3], KEYS[4]
local bell, idem = ARGV[1], ARGV[2]
mend_seq(keys)
must_be('zset', delayed)
must_be('hash', delayed_jobs, limits, KEYS[5])
local FIRST = 6
local streams = #KEYS - FIRST
local ids = {}
local rung, large = {}, {}
local head

local function put(stream, meta, payload)
  local id, why = put_entry(stream, meta == '' and {'p1', payload} or {'p1', payload, 'm', meta})
  return id or '!' .. why, id ~= nil
end

local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

for at = 3 + streams, #ARGV, 4 do
  local index = tonumber(ARGV[at])
  local stream, task = KEYS[FIRST + index], ARGV[2 + index]
  local meta, payload, special = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local id
  if #payload > (large[task] or LARGE_BYTES) then
    large[task] = #payload
    if is_largest(KEYS[5], task, #payload) then
      redis.call('HSET', KEYS[5], task, #payload)
    end
  end
  local child
  if special == '' then
    local queued
    id, queued = put(stream, meta, payload)
    child = queued and task .. ':' .. string.sub(stream, -1) .. id
  else
    local wish = cjson.decode(special)
    local held = wish.key and (redis.call('GET', wish.sent) or redis.pcall('GET', idem .. wish.key))
    if type(held) == 'string' then
      id = '=' .. held
    else
      local now = now_us()
      local lane = string.sub(stream, -1)
      local due = wish.at or (wish.delay and now + wish.delay)
      meta = expiring(meta, wish.ttl, due, now)
      local job_id
      local queued = true
      if due then
        if head == nil then
          local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
          head = first[2] and tonumber(first[2]) or false
        end
        id = delay_job(keys, task, lane, meta, payload, due, now)
        job_id = task .. ':' .. id
        if not head or due < head then
          head = due
          rung.d = 'd'
        end
      else
        id, queued = put(stream, meta, payload)
        job_id = task .. ':' .. lane .. id
      end
      child = queued and job_id
      if wish.key and queued then
        local holder = job_id .. ' ' .. wish.nonce
        redis.call('SET', idem .. wish.key, holder, 'PX', wish.key_ttl)
        redis.call('SET', wish.sent, holder, 'PX', wish.sent_ttl)
      end
    end
  end
  if child and string.find(meta, '"r":"', 1, true) then
    note_child(keys, now_us() / 1000, 'o', child, cjson.decode(meta))
  end
  ids[#ids + 1] = id
end

for index = 1, streams do
  local task = ARGV[2 + index]
  if not rung[task] and redis.call('HEXISTS', limits, task) == 1 then
    rung[task] = 't' .. task
  end
end
for _, word in pairs(rung) do
  redis.call('SPUBLISH', bell, word)
end
return ids

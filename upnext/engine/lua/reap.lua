#!lua flags=allow-oom
-- Takes a dead consumer's entries back, at most 200 and about 1 MiB a call, and removes the consumer once nothing is pending. A clean stop is the same, by the consumer itself.
-- KEYS: 1 epoch, 2 leases, 3 graves, 4 consumers, 5 where, 6 waiters, 7 dead, 8 dead:jobs, 9 cancel, 10 stats, 11 notes, 12 dead:bytes,
--       13 groups, 14 groups:ids, 15 f:, 16 ended:, 17 tasks, 18 lingering, 19... four streams per task
-- ARGV: 1 epoch, 2 consumer, 3 '': whatever its lease is; else its lease's end as it was seen, as text: only while
--       that is unchanged, or gone (a foreign consumer), 4 '1': remove the consumer when nothing is pending; '2': only from the
--       groups of these tasks, others follow,
--       5 charge: 'none'; 'crash' charges the started entries; 'host' charges every entry a lost host, 6 cause, 7 detail (stack of a hang, or ''),
--       8 result prefix, 9 idempotency prefix, 10 reply prefix, 11 bell channel, 12 most lost hosts, 13 number of tasks, 14... those tasks,
--       then the name of the crash, the number of jobs that had started in its process (this consumer's and others'), and the started entries,
--       each `TASK:LANE ENTRY_ID`
-- Returns: {entries moved, entries still pending, 1 when the consumer is gone, number buried, how many of the moved are suspects,
--           why entries could not be moved or '', then the names of earlier crashes whose culprit this crash has shown}
-- Errors: EPOCH
-- include: epoch
-- include: must_be
-- include: task_options
-- include: put_entry
-- include: dead_total
-- include: end_job
-- include: ends
-- include: flow
-- include: end_cancelled
-- include: read_meta
local consumer, seen, final, charge, cause, detail = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = redis.call('ZSCORE', KEYS[2], consumer)
if seen ~= '' and lease and lease ~= seen then
  return {0, -1, 0, 0, 0, ''}
end
must_be('zset', KEYS[3], KEYS[7])
must_be('hash', KEYS[4], KEYS[5], KEYS[6], KEYS[8], KEYS[9], KEYS[11], KEYS[17], KEYS[18])
redis.call('ZREM', KEYS[2], consumer)
redis.call('ZADD', KEYS[3], 'NX', string.format('%.0f', now), consumer)

local keys = {
  where = KEYS[5], waiters = KEYS[6], dead = KEYS[7], dead_jobs = KEYS[8], cancel = KEYS[9], stats = KEYS[10], tasks = KEYS[17],
  notes = KEYS[11], dead_bytes = KEYS[12], groups = KEYS[13], group_ids = KEYS[14], flow = KEYS[15], ended = KEYS[16],
  result = ARGV[8], idem = ARGV[9], reply = ARGV[10], have_waiters = true, have_cancels = true,
}
local tasks = tonumber(ARGV[13])
local crash, suspects = ARGV[14 + tasks], tonumber(ARGV[15 + tasks])
local started, apart, shown = {}, 0, {}
for at = 16 + tasks, #ARGV do
  started[ARGV[at]] = true
end

local function buried_outcome(meta, message)
  return cjson.encode({
    s = 'dead', a = meta.a, c = meta.c, f = now, w = consumer, p = meta.p, r = meta.r, y = 'crash', x = cause,
    l = type(meta.u) == 'table' and meta.u.labels or nil, o = type(meta.u) == 'table' and meta.u.via or nil,
    e = {type = 'WorkerCrash', message = message, traceback = detail},
  })
end

local function count(task, word)
  redis.pcall('HINCRBY', KEYS[10], task .. ':' .. word, 1)
end

local moved, buried, budget, left_bytes, problem = 0, 0, 200, 1048576, nil

-- A lane that takes nothing leaves the entry where it is, pending: it is moved once the lane takes it.
local function put(stream, entry, target, fields)
  local new, why = put_entry(target, fields)
  if not new then
    problem = problem or (stream .. ' ' .. entry .. ' stays: ' .. why)
    return nil
  end
  moved = moved + 1
  return new
end

for position = 1, tasks do
  local task = ARGV[13 + position]
  local base = 18 + 4 * (position - 1)
  local definition
  if redis.call('HDEL', KEYS[18], task .. '\n' .. consumer) == 1 then
    redis.call('SPUBLISH', ARGV[11], 't' .. task)
  end
  for number = 1, 4 do
    local stream = KEYS[base + number]
    local lane = string.sub('nhbx', number, number)
    local pending = budget > 0 and redis.pcall('XPENDING', stream, 'w', '-', '+', budget, consumer) or {}
    for _, row in ipairs(pending.err and {} or pending) do
      local entry = row[1]
      budget = budget - 1
      local found = redis.call('XRANGE', stream, entry, entry)
      left_bytes = left_bytes - (found[1] and #(found[1][2][2] or '') or 0)
      local meta = found[1] and read_meta(found[1][2])
      local settled = true
      if found[1] and not meta then
        settled = put(stream, entry, KEYS[base + 3], found[1][2]) ~= nil
      elseif meta then
        local fields = found[1][2]
        local home = meta.l or (lane ~= 'b' and lane ~= 'x' and lane) or 'n'
        local had_location = meta.i ~= nil
        meta.i = meta.i or (task .. ':' .. lane .. entry)
        meta.l = home
        local job, target, letter = meta.i, 'b', nil
        if redis.call('HEXISTS', KEYS[11], job) == 1 then
          meta.n = 1
        end
        local had_started = started[task .. ':' .. lane .. ' ' .. entry]
        local guilty = charge == 'crash' and had_started
        if had_started or charge == 'host' then
          meta.q = nil -- it bounds the wait for the first start; on a lost host it may have started
        end
        definition = definition or task_options(KEYS[17], task)
        local own = type(meta.u) == 'table' and meta.u or {}
        local ttl = math.floor((tonumber(own.result_ttl_s) or tonumber(definition.result_ttl_s) or 600) * 1000)
        if guilty then
          meta.x = cause
          if suspects > 1 then
            meta.s, meta.d = 1, crash
            target = 'x'
          else
            meta.c = (tonumber(meta.c) or 0) + 1
            count(task, 'crashes')
            if meta.c >= (tonumber(definition.max_crashes) or 3) then
              letter = 'dead'
            elseif meta.s then
              target = 'x'
            end
            if lane == 'x' and meta.d then
              shown[#shown + 1] = meta.d
              meta.d = nil
            end
          end
        elseif charge == 'host' then
          meta.h = (tonumber(meta.h) or 0) + 1
          meta.x = cause
          if meta.h >= tonumber(ARGV[12]) then
            letter = 'dead'
          elseif lane == 'x' then
            target = 'x'
          end
        elseif lane == 'x' then
          target = 'x'
        end
        if redis.call('HEXISTS', KEYS[9], job) == 1 then
          end_cancelled(keys, now, task, job, meta, had_location, consumer, cause)
        elseif letter then
          local times = meta.h and meta.h >= tonumber(ARGV[12]) and (meta.h .. ' hosts were lost') or (meta.c .. ' worker crashes')
          local outcome = buried_outcome(meta, 'buried after ' .. times .. ', the last: ' .. cause)
          local group = group_name('WorkerCrash', cause)
          local kept = {a = meta.a, c = meta.c, h = meta.h, p = meta.p, r = meta.r, x = meta.x, u = meta.u, g = group, z = cjson.decode(outcome)}
          kept = cjson.encode(kept)
          end_job(keys, now, job, outcome, ttl, meta, home .. #kept .. ':' .. kept .. fields[2], had_location)
          count(task, 'dead')
          local about = {t = 'WorkerCrash', x = cause, m = string.sub('buried after ' .. times .. ', the last: ' .. cause, 1, 200)}
          note_child(keys, now, 'x', job, meta)
          note_end(task, 'x', job, group, cjson.encode(about))
          buried = buried + 1
        else
          local at = target == 'x' and 4 or 3
          local new = put(stream, entry, KEYS[base + at], {fields[1], fields[2], 'm', cjson.encode(meta)})
          if new then
            redis.call('HSET', KEYS[5], job, target .. ' ' .. new)
          end
          settled = new ~= nil
          apart = apart + (settled and target == 'x' and 1 or 0)
        end
      end
      if left_bytes <= 0 then
        budget = 0
      end
      if not settled then
        break -- the rest of this lane would go the same way
      end
      redis.call('XACK', stream, 'w', entry)
      redis.call('XDEL', stream, entry)
      if budget <= 0 then
        break
      end
    end
  end
end
keep_ends(keys, now)
if moved > 0 then
  redis.call('SPUBLISH', ARGV[11], 'b')
end

local left = 0
for stream = 19, 18 + 4 * tasks do
  local summary = redis.pcall('XPENDING', KEYS[stream], 'w', '-', '+', 1, consumer)
  if not summary.err then
    left = left + #summary
  end
end
local gone = 0
if left == 0 and final ~= '0' then
  for stream = 19, 18 + 4 * tasks do
    redis.pcall('XGROUP', 'DELCONSUMER', KEYS[stream], 'w', consumer)
  end
  if final == '1' then
    redis.call('HDEL', KEYS[4], consumer)
    redis.call('ZREM', KEYS[3], consumer)
    gone = 1
  end
end
return {moved, left, gone, buried, apart, problem or '', unpack(shown)}

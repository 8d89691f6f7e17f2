#!lua flags=allow-oom
-- Gives up fetched, unstarted jobs: each becomes a new entry in lane `back` of its task, or of lane `suspect` where it came from there; one whose
-- cancel was asked for ends. Fenced by the entry id.
-- KEYS: 1 epoch, 2 where, 3 waiters, 4 dead, 5 dead:jobs, 6 cancel, 7 stats, 8 notes, 9 dead:bytes, 10 groups, 11 groups:ids, 12 f:, 13 ended:,
--       14 tasks, 15... for each (task, lane) two: the stream, the task's back stream
-- ARGV: 1 epoch, 2 bell channel, 3 result prefix, 4 idempotency prefix, 5 reply prefix, then for each pair of KEYS: its task; then for each job two:
--       index of its pair from 1, entry id
-- Returns: {the number of jobs that were ours (others have another owner), how many were looked at, in their order: at most about 1 MiB of them}
-- Errors: EPOCH; what the back lane says when it takes nothing more, and no job was given up
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
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local keys = {
  where = KEYS[2], waiters = KEYS[3], dead = KEYS[4], dead_jobs = KEYS[5], cancel = KEYS[6], stats = KEYS[7], tasks = KEYS[14],
  notes = KEYS[8], dead_bytes = KEYS[9], groups = KEYS[10], group_ids = KEYS[11], flow = KEYS[12], ended = KEYS[13],
  result = ARGV[3], idem = ARGV[4], reply = ARGV[5], have_waiters = true, have_cancels = redis.call('HLEN', KEYS[6]) > 0,
}
must_be('hash', KEYS[2], KEYS[3], KEYS[5], KEYS[6], KEYS[8], KEYS[14])
must_be('zset', KEYS[4])
must_be('stream', unpack(KEYS, 15))
local FIRST = 14
local pairs_count = (#KEYS - FIRST) / 2
local count, moved, looked_at, left, problem = 0, 0, 0, 1048576, nil

local function put(back, fields)
  local new, why = put_entry(back, fields)
  problem = problem or why
  return new
end

for at = 6 + pairs_count, #ARGV, 2 do
  if left <= 0 then
    break
  end
  looked_at = looked_at + 1
  local index, entry = tonumber(ARGV[at]), ARGV[at + 1]
  local stream, back, task = KEYS[FIRST - 1 + 2 * index], KEYS[FIRST + 2 * index], ARGV[5 + index]
  local held = redis.pcall('XPENDING', stream, 'w', entry, entry, 1)
  if not held.err and #held == 1 then
    local found = redis.call('XRANGE', stream, entry, entry)
    local given_up = true
    if found[1] then
      local fields = found[1][2]
      left = left - #(fields[2] or '')
      local meta = read_meta(fields)
      if not meta then
        given_up = put(back, fields) ~= nil
        moved = moved + (given_up and 1 or 0)
      else
        local lane = string.sub(stream, -1)
        local had_location = meta.i ~= nil
        meta.i = meta.i or (task .. ':' .. lane .. entry)
        meta.l = meta.l or (lane ~= 'x' and lane) or 'n'
        meta.b = 1
        if keys.have_cancels and redis.call('HEXISTS', KEYS[6], meta.i) == 1 then
          end_cancelled(keys, now, task, meta.i, meta, had_location, nil, nil)
        else
          local suspect = lane == 'x'
          local new = put(suspect and stream or back, {fields[1], fields[2], 'm', cjson.encode(meta)})
          given_up = new ~= nil
          if new then
            redis.call('HSET', KEYS[2], meta.i, (suspect and 'x ' or 'b ') .. new)
            moved = moved + 1
          end
        end
      end
    end
    if given_up then
      count = count + 1
      redis.call('XACK', stream, 'w', entry)
      redis.call('XDEL', stream, entry)
    end
  end
end
keep_ends(keys, now)
if problem and count == 0 then
  return redis.error_reply(problem)
end
if moved > 0 then
  redis.call('SPUBLISH', ARGV[2], 'b')
end
return {count, looked_at}

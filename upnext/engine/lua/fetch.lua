#!lua flags=allow-oom
-- Takes jobs for a consumer, at most a total budget, without waiting. The only way in for limited tasks, and for lanes back and suspect.
-- KEYS: 1 epoch, 2 leases, 3 paused, 4 limits, 5 gcra, 6 lingering, 7 large, 8... four per task: its lanes normal, high, back, suspect
-- ARGV: 1 epoch, 2 consumer, 3 budget, 4 '1': one suspect and nothing else, 5 for each task three letters: its lanes
--       (n, h, b, - for none) in the order in which they are read,
--       6 most of one limited task at once, 7... for each task: its name
-- Returns: {server ms, retry-after ms of what a rate holds back (-1: nothing is), 1 when a limit holds something back, how large the
--           jobs of a task with more of them may be (0: no task has more), then triples: position of the task from 1, lane letter, entries as
--           XREADGROUP gives them; last, when a task could not be read: 0, '!', the error}
-- Errors: EPOCH; REAPED when the consumer has no lease; NOGROUP and others when nothing could be taken because of them
-- include: epoch
-- include: gcra
-- include: lingering
-- include: large
-- How large an entry is shows only when it is taken: a task gives so many at a time as would be MOST_BYTES if all were like its largest, or
-- FEW (of the largest payloads there are). With MOST_BYTES nothing more is taken.
local MOST_BYTES, FEW = 1048576, 3
local left_bytes = MOST_BYTES
local consumer, budget, suspect, orders = ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1', ARGV[5]
if not redis.call('ZSCORE', KEYS[2], consumer) then
  return redis.error_reply('REAPED ' .. consumer)
end
local most_limited = tonumber(ARGV[6])
local OFFSET = {n = 8, h = 9, b = 10, x = 11}
local tasks = #ARGV - 6
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local reply = {math.floor(now_us / 1000), -1, 0, 0}
if tasks == 0 then
  return reply
end
local paused = redis.call('SCARD', KEYS[3]) > 0 and redis.call('SMISMEMBER', KEYS[3], unpack(ARGV, 7)) or nil
local limits = redis.call('HLEN', KEYS[4]) > 0 and redis.call('HMGET', KEYS[4], unpack(ARGV, 7)) or nil

local largest = {}
local function step_of(position, biggest)
  local known = largest[position] or tonumber(redis.call('HGET', KEYS[7], ARGV[6 + position])) or LARGE_BYTES
  if biggest > known then -- of a producer that didn't note it
    redis.call('HSET', KEYS[7], ARGV[6 + position], biggest)
    known = biggest
  end
  largest[position] = known
  reply[4] = math.max(reply[4], known)
  return math.max(FEW, math.floor(MOST_BYTES / known))
end

local function take(position, lane, want)
  local taken, step = nil, FEW
  while want > 0 and left_bytes > 0 do
    local asked = math.min(want, step)
    local read = redis.call('XREADGROUP', 'GROUP', 'w', consumer, 'COUNT', asked, 'STREAMS', KEYS[OFFSET[lane] + 4 * (position - 1)], '>')
    if not read then
      break
    end
    local entries, biggest = read[1][2], 0
    for _, entry in ipairs(entries) do
      local bytes = #(entry[2][2] or '')
      left_bytes = left_bytes - bytes
      biggest = math.max(biggest, bytes)
      if taken then
        taken[#taken + 1] = entry
      end
    end
    if not taken then
      taken = entries
      local size = #reply
      reply[size + 1], reply[size + 2], reply[size + 3] = position, lane, entries
    end
    want = want - #entries
    if #entries < asked then
      break
    end
    step = step_of(position, biggest)
  end
  return taken and #taken or 0
end

local function take_in_order(position, want)
  local took = 0
  for at = 3 * position - 2, 3 * position do
    local lane = string.sub(orders, at, at)
    if want - took > 0 and lane ~= '-' then
      took = took + take(position, lane, want - took)
    end
  end
  return took
end

local function free_places(position, limit)
  local pending = lingering(KEYS[6], ARGV[6 + position])
  for lane = 8, 11 do
    pending = pending + redis.call('XPENDING', KEYS[lane + 4 * (position - 1)], 'w')[1]
  end
  return limit.concurrency - pending
end

local function limit_of(position)
  if not (limits and limits[position]) then
    return nil
  end
  local fine, limit = pcall(cjson.decode, limits[position])
  local known = {number = true, ['nil'] = true}
  if fine and type(limit) == 'table' and known[type(limit.concurrency)] and known[type(limit.burst)] and known[type(limit.rate)]
    and type(limit.rate) == type(limit.period_s) then
    return limit
  end
  error({err = 'ERR the limit of ' .. ARGV[6 + position] .. ' in ' .. KEYS[4] .. " can't be read, so none of its jobs are fetched: `upnext doctor`"})
end

local again, problem = {}, nil

-- One lane or limit that can't be read must not cost what was taken before it, nor keep the other tasks waiting: it stands beside what was taken.
local function attempt(...)
  local took, result = pcall(...)
  if took then
    return result
  end
  problem = problem or (type(result) == 'table' and result.err or tostring(result))
  return false
end

local function with_problem()
  if problem then
    local size = #reply
    reply[size + 1], reply[size + 2], reply[size + 3] = 0, '!', problem
  end
  return reply
end

local function may_start_suspect(position)
  if (paused and paused[position] == 1) or redis.call('XLEN', KEYS[11 + 4 * (position - 1)]) == 0 then
    return false
  end
  local limit = limit_of(position)
  if limit and limit.concurrency and free_places(position, limit) < 1 then
    reply[3] = 1
    return false
  end
  return true
end

if suspect then
  for position = 1, tasks do
    if attempt(may_start_suspect, position) and take(position, 'x', 1) > 0 then
      break
    end
  end
  return with_problem()
end

-- A limited task's jobs, as far as its limit and its budget `want` go. `more`: its budget is not its last in this call.
local function take_limited(position, limit, want, more)
  local granted = want
  if limit.concurrency and granted > 0 then
    granted = math.min(granted, free_places(position, limit))
  end
  local tat
  if limit.rate and granted > 0 then
    tat = tonumber(redis.call('HGET', KEYS[5], ARGV[6 + position]) or '0') or 0
    granted = math.min(granted, (gcra(tat, now_us, limit, granted)))
  end
  if granted < want then
    reply[3] = 1
  end
  local took = take_in_order(position, granted)
  if tat then
    local _, new_tat, wait = gcra(tat, now_us, limit, took)
    if took > 0 then
      redis.call('HSET', KEYS[5], ARGV[6 + position], string.format('%.0f', new_tat))
    end
    if took >= granted and not (more and granted == want) then
      reply[2] = math.max(1, reply[2] < 0 and wait or math.min(wait, reply[2]))
    end
  end
  return took
end

local function take_from(position)
  local limit = limit_of(position)
  if not limit then
    budget = budget - take_in_order(position, budget)
    return
  end
  -- What comes first must not take all slots that are free at once: half of what is left, the rest when no other one has wanted it.
  local most = math.min(budget, most_limited)
  local share = tasks > 1 and math.ceil(most / 2) or most
  local took = take_limited(position, limit, share, share < most)
  budget = budget - took
  if took == share and share < most then
    again[#again + 1] = {position, limit, most - share}
  end
end

for position = 1, tasks do
  if budget <= 0 then
    break
  end
  if not (paused and paused[position] == 1) then
    attempt(take_from, position)
  end
end
for _, rest in ipairs(again) do
  local want = math.min(budget, rest[3])
  if want > 0 then
    attempt(function()
      budget = budget - take_limited(rest[1], rest[2], want, false)
    end)
  end
end
return with_problem()

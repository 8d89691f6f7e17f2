#!lua flags=allow-oom
-- Writes down the counters and depths of a page of tasks at one moment. What is written is not changed by a repeat, nor by another leader; a task that
-- stands still since its last row is not written, and a change also writes what was before, at the moment before.
-- KEYS: 1 epoch, 2 tasks, 3 stats, 4 series:last:, 5 series:, 6 series:
-- ARGV: 1 epoch, 2 stream prefix, 3 cursor, 4 about how many tasks, 5 seconds that a moment is kept
--       (KEYS 5 is this moment, KEYS 6 the one before)
-- Returns: next cursor; at '0' all are written
-- Errors: EPOCH
-- include: epoch
-- include: must_be
-- include: last_fetched
must_be('hash', KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local scanned = redis.call('HSCAN', KEYS[2], ARGV[3], 'COUNT', ARGV[4])
local left = 1048576 -- bytes of jobs that are read for their age

local function depth(task)
  local stored, held, oldest = 0, 0, nil
  for lane in string.gmatch('nhbx', '.') do
    local stream = ARGV[2] .. task .. ':' .. lane
    local length = redis.pcall('XLEN', stream)
    if type(length) == 'number' and length > 0 then
      local summary = redis.pcall('XPENDING', stream, 'w')
      local pending = summary.err and 0 or summary[1]
      stored, held = stored + length, held + pending
      if length > pending and left > 0 then
        local first = redis.call('XRANGE', stream, '(' .. last_fetched(stream), '+', 'COUNT', 1)[1]
        if first then
          left = left - #(first[2][2] or '')
          oldest = math.min(oldest or now, tonumber(string.match(first[1], '^%d+')))
        end
      end
    end
  end
  return math.max(0, stored - held), held, math.max(0, now - (oldest or now))
end

for at = 1, #scanned[2], 2 do
  local task = scanned[2][at]
  local words = {}
  for _, word in ipairs({'done', 'failed', 'cancelled', 'dead', 'retried'}) do
    words[#words + 1] = task .. ':' .. word
  end
  local row = redis.call('HMGET', KEYS[3], unpack(words))
  for number = 1, #words do
    row[number] = string.format('%.0f', tonumber(row[number] or 0) or 0)
  end
  for _, number in ipairs({depth(task)}) do
    row[#row + 1] = string.format('%.0f', number)
  end
  local sample, before = table.concat(row, ' '), redis.call('HGET', KEYS[4], task)
  if sample ~= before and redis.call('HEXISTS', KEYS[5], task) == 0 then
    if before and redis.call('HEXISTS', KEYS[6], task) == 0 then
      redis.call('HSET', KEYS[6], task, before)
    end
    redis.call('HSET', KEYS[5], task, sample)
    redis.call('HSET', KEYS[4], task, sample)
  end
end
if scanned[1] == '0' then
  redis.call('HSET', KEYS[5], '=', '1')
end
redis.call('EXPIRE', KEYS[5], ARGV[5])
redis.call('EXPIRE', KEYS[6], ARGV[5])
return scanned[1]

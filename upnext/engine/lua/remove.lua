#!lua flags=allow-oom
-- Takes a name out of the registry, unless it was registered or announced since the caller read it. A cron stops, a handler gets no more
-- events; the task's own row, counters and lanes go only when it has no job.
-- KEYS: 1 epoch, 2 tasks, 3 crons, 4 cursors, 5 fired, 6 seen, 7 lapsed, 8 limits, 9 gcra, 10 stats, 11 limits:set, 12 paused,
--       13 its event ('' as name for none), 14 large, 15 groups, 16 groups:ids, 17 its successes,
--       18 series:last:, 19 series:last:, 20... its four streams
-- ARGV: 1 epoch, 2 name, then as they were read ('': missing): 3 definition, 4 cron, 5 seen, 6 seen by its event; 7 '1': keep the cron's cursor,
--       8 '1': its own row may go, 9 '1': what operators set goes with it, 10 bell channel
-- Returns: 0 it has changed meanwhile; 1 it is inactive, and its row stays; 2 all of it is gone
-- Errors: EPOCH
-- include: epoch
local name = ARGV[2]
local function now_is(key, expected)
  return (redis.call('HGET', key, name) or '') == expected
end
if not (now_is(KEYS[2], ARGV[3]) and now_is(KEYS[3], ARGV[4]) and now_is(KEYS[6], ARGV[5]) and now_is(KEYS[13], ARGV[6])) then
  return 0
end
local fine, row = pcall(cjson.decode, ARGV[4] ~= '' and ARGV[4] or 'null')
local cron = fine and type(row) == 'table' and row or nil
local jobs = 0
for stream = 20, 23 do
  jobs = jobs + redis.call('XLEN', KEYS[stream])
end
local time = redis.call('TIME')

if ARGV[4] ~= '' then
  redis.call('HDEL', KEYS[3], name)
  if ARGV[7] == '1' and cron then
    local kept = {schedule = cron.schedule, timezone = cron.timezone, at_ms = time[1] * 1000}
    redis.call('HSET', KEYS[7], name, cjson.encode(kept))
  else
    redis.call('HDEL', KEYS[4], name)
    redis.call('HDEL', KEYS[5], name)
  end
  redis.call('SPUBLISH', ARGV[10], 'p')
end
if ARGV[6] ~= '' then
  redis.call('HDEL', KEYS[13], name)
end
if ARGV[8] ~= '1' or jobs > 0 then
  return 1
end
redis.call('HDEL', KEYS[2], name)
redis.call('HDEL', KEYS[6], name)
redis.call('HDEL', KEYS[8], name)
redis.call('HDEL', KEYS[9], name)
for _, word in ipairs({'done', 'failed', 'dead', 'cancelled', 'retried', 'crashes', 'expired', 'skipped'}) do
  redis.call('HDEL', KEYS[10], name .. ':' .. word)
end
if ARGV[9] == '1' then
  redis.call('HDEL', KEYS[11], name)
  redis.call('SREM', KEYS[12], name)
  redis.call('HDEL', KEYS[7], name)
  redis.call('HDEL', KEYS[4], name)
  redis.call('HDEL', KEYS[5], name)
end
redis.call('HDEL', KEYS[14], name)
local groups = redis.pcall('HGET', KEYS[15], name)
for group in string.gmatch(type(groups) == 'string' and groups or '', '%S+') do
  redis.pcall('HDEL', KEYS[15], name .. '\n' .. group)
  redis.pcall('HDEL', KEYS[16], name .. '\n' .. group)
end
redis.pcall('HDEL', KEYS[15], name)
redis.pcall('LTRIM', KEYS[17], 1, 0) -- to nothing: the key goes
redis.pcall('HDEL', KEYS[18], name)
redis.pcall('HDEL', KEYS[19], name)
redis.call('UNLINK', unpack(KEYS, 20, 23))
return 2

#!lua
-- Makes a schedule, or changes one of this name. Its time begins now where it is new or its times are others; else its ticks go on as they were.
-- A pause stays, for it is an operator's.
-- KEYS: 1 schedules, 2 schedules:arguments, 3 schedules:state, 4 crons
-- ARGV: 1 name, 2 its row (JSON), 3 arguments of its jobs (JSON), 4 most schedules, 5 bell channel
-- Returns: 1 it is new; 0 it was there; -1 there are most already; -2 a declared cron has this name
-- Errors: OOM
-- include: must_be
must_be('hash', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
local name = ARGV[1]
local known = redis.call('HGET', KEYS[1], name)
if not known and redis.call('HEXISTS', KEYS[4], name) == 1 then
  return -2
end
if not known and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
  return -1
end
local fine, before = pcall(cjson.decode, known or 'null')
local given = cjson.decode(ARGV[2])
local same = fine and type(before) == 'table' and redis.call('HEXISTS', KEYS[3], name) == 1
for _, field in ipairs({'schedule', 'timezone', 'every_ms'}) do
  same = same and before[field] == given[field]
end
redis.call('HSET', KEYS[1], name, ARGV[2])
redis.call('HSET', KEYS[2], name, ARGV[3])
if not same then
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[3], name, string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
end
redis.call('SPUBLISH', ARGV[5], 'p')
return known and 0 or 1

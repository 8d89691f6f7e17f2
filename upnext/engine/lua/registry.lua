#!lua flags=no-writes
-- All that is registered, who announces it, and what living consumers fetch.
-- KEYS: 1 tasks, 2 crons, 3 seen, 4 announcers, 5 announced, 6 consumers, 7 leases, 8 lapsed, 9 epoch
-- ARGV: 1 prefix of event keys
-- Returns: {server ms, {task, definition, ...}, {cron, definition, ...}, {name, seen ms, ...}, {announcer, record, ...},
--           {announcer, lease end ms, ...}, {records of living consumers}, {handler task, seen ms by its event, ...}, {cron, lapsed row, ...}, epoch or nil}
-- Errors: none
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local tasks = redis.call('HGETALL', KEYS[1])
local subscribed = {}
for at = 1, #tasks, 2 do
  if string.find(tasks[at + 1], '"event"', 1, true) then
    local fine, row = pcall(cjson.decode, tasks[at + 1])
    if fine and type(row) == 'table' and type(row.event) == 'string' then
      local seen = redis.pcall('HGET', ARGV[1] .. row.event, tasks[at])
      if type(seen) == 'string' then
        subscribed[#subscribed + 1] = tasks[at]
        subscribed[#subscribed + 1] = seen
      end
    end
  end
end
local records = {}
local living = redis.call('ZRANGEBYSCORE', KEYS[7], '(' .. now, '+inf')
for from = 1, #living, 1000 do
  for _, record in ipairs(redis.call('HMGET', KEYS[6], unpack(living, from, math.min(from + 999, #living)))) do
    if record then
      records[#records + 1] = record
    end
  end
end
return {
  now, tasks, redis.call('HGETALL', KEYS[2]), redis.call('HGETALL', KEYS[3]), redis.call('HGETALL', KEYS[4]),
  redis.call('ZRANGE', KEYS[5], 0, -1, 'WITHSCORES'), records, subscribed, redis.call('HGETALL', KEYS[8]),
  redis.call('GET', KEYS[9]),
}

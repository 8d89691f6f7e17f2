#!lua flags=allow-oom
-- States that a daemon lives, what its module declares and what of that it serves; renews what it names, makes nothing that isn't registered
-- but the subscription of handlers that it serves.
-- KEYS: 1 epoch, 2 announcers, 3 announced, 4 seen, 5 tasks, 6 crons, 7... one event key per handler
-- ARGV: 1 epoch, 2 announcer, 3 its record (JSON; '': unchanged), 4 lease ms, 5 number of names, 6 number of crons, then the names, the crons,
--       for each handler two: its task, '1' when it is served here
-- Returns: names and crons that are not registered
-- Errors: EPOCH
-- include: epoch
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = string.format('%.0f', now)
local names, crons = tonumber(ARGV[5]), tonumber(ARGV[6])
local missing, seen, rows, handlers = {}, {}, {}, {}
for at = 7, 6 + names do
  if redis.call('HEXISTS', KEYS[5], ARGV[at]) == 1 then
    seen[#seen + 1] = ARGV[at]
  else
    missing[#missing + 1] = ARGV[at]
  end
end
for at = 7 + names, 6 + names + crons do
  local raw = redis.call('HGET', KEYS[6], ARGV[at])
  local fine, row = pcall(cjson.decode, raw or 'null')
  if fine and type(row) == 'table' then
    row.last_seen_ms = now
    rows[#rows + 1] = {ARGV[at], cjson.encode(row)}
  else
    missing[#missing + 1] = ARGV[at]
  end
end
for key = 7, #KEYS do
  local at = 7 + names + crons + 2 * (key - 7)
  if ARGV[at + 1] == '1' or redis.call('HEXISTS', KEYS[key], ARGV[at]) == 1 then
    handlers[#handlers + 1] = {KEYS[key], ARGV[at]}
  end
end
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
end
redis.call('ZADD', KEYS[3], string.format('%.0f', now + tonumber(ARGV[4])), ARGV[2])
for _, name in ipairs(seen) do
  redis.call('HSET', KEYS[4], name, now_text)
end
for _, row in ipairs(rows) do
  redis.call('HSET', KEYS[6], row[1], row[2])
end
for _, handler in ipairs(handlers) do
  redis.call('HSET', handler[1], handler[2], now_text)
end
return missing

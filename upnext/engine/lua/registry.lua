#!lua flags=no-writes
-- A page of what is registered, who announces it, or what living consumers fetch.
-- KEYS: 1 tasks, 2 crons, 3 seen, 4 announcers, 5 announced, 6 consumers, 7 leases, 8 lapsed, 9 epoch
-- ARGV: 1 prefix of event keys, 2 part: t tasks, c crons, a announcers, w consumers, l crons that lapsed, 3 cursor, 4 about how many rows
-- Returns: {server ms, epoch or nil, next cursor, then for each row a list, by part: t and c: name, definition of the task or nil, of the cron or nil,
--           when it was seen (ms) or nil, when its event saw it or nil · a: announcer, record, end of its lease (ms) or nil ·
--           w: record of one whose lease is in force · l: cron, row}
-- Errors: none
-- include: pass_over
pass_over('hash', 1, 2, 3, 4, 6, 8)
pass_over('zset', 5, 7)
pass_over('string', 9)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local part = ARGV[2]
local scanned = redis.call('HSCAN', KEYS[({t = 1, c = 2, a = 4, w = 6, l = 8})[part]], ARGV[3], 'COUNT', ARGV[4])
local reply = {now, redis.call('GET', KEYS[9]), scanned[1]}

local function add(row)
  reply[#reply + 1] = row
end

local function seen_by_its_event(name, definition)
  if not definition or not string.find(definition, '"event"', 1, true) then
    return false
  end
  local fine, row = pcall(cjson.decode, definition)
  if fine and type(row) == 'table' and type(row.event) == 'string' then
    local seen = redis.pcall('HGET', ARGV[1] .. row.event, name)
    return type(seen) == 'string' and seen
  end
  return false
end

for at = 1, #scanned[2], 2 do
  local name, row = scanned[2][at], scanned[2][at + 1]
  if part == 'a' then
    add({name, row, redis.call('ZSCORE', KEYS[5], name)})
  elseif part == 'w' then
    if tonumber(redis.call('ZSCORE', KEYS[7], name) or '0') > now then
      add({row})
    end
  elseif part == 'l' then
    add({name, row})
  else
    local task = part == 't' and row or redis.call('HGET', KEYS[1], name)
    local cron = part == 'c' and row or redis.call('HGET', KEYS[2], name)
    add({name, task, cron, redis.call('HGET', KEYS[3], name), seen_by_its_event(name, task)})
  end
end
return reply

#!lua flags=no-writes
-- A part of the schedules and how they stand; or one, with the arguments of its jobs.
-- KEYS: 1 schedules, 2 schedules:state, 3 schedules:arguments, 4 paused, 5 tasks
-- ARGV: 1 the one that is asked for ('': a part of all), 2 cursor, 3 about how many
-- Returns: {next cursor ('0' at the end), server ms, then for each a list: name, row, cursor ms or nil, newest tick that fired, ms, or nil; ticks that were skipped, or nil;
--          1 when it is paused, 1 when its task is, the service of its task ('' none is known) or nil: the task is not registered,
--          arguments or nil: not asked for}
-- Errors: none
-- include: pass_over
pass_over('hash', 1, 2, 3, 5)
pass_over('set', 4)
local time = redis.call('TIME')
local reply = {'0', time[1] * 1000 + math.floor(time[2] / 1000)}
local rows
if ARGV[1] == '' then
  local scanned = redis.call('HSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
  reply[1], rows = scanned[1], scanned[2]
else
  local row = redis.call('HGET', KEYS[1], ARGV[1])
  rows = row and {ARGV[1], row} or {}
end

local function read(raw)
  local fine, row = pcall(cjson.decode, raw)
  return fine and type(row) == 'table' and row or {}
end

local owners = {}
local function owner(task)
  if owners[task] == nil then
    local definition = redis.call('HGET', KEYS[5], task)
    local row = definition and read(definition)
    local service = row and (row.owner or row.service) or ''
    owners[task] = definition and (type(service) == 'string' and service or '') or false
  end
  return owners[task]
end

for at = 1, #rows, 2 do
  local name, task = rows[at], read(rows[at + 1]).task
  task = type(task) == 'string' and task or ''
  local state = redis.call('HMGET', KEYS[2], name, name .. ' fired', name .. ' skipped', name .. ' paused')
  reply[#reply + 1] = {
    name, rows[at + 1], state[1], state[2], state[3], state[4] and 1 or 0, redis.call('SISMEMBER', KEYS[4], task), owner(task),
    ARGV[1] ~= '' and redis.call('HGET', KEYS[3], name),
  }
end
return reply

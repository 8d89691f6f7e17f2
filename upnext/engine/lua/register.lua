#!lua flags=allow-oom
-- Makes a consumer known before its first fetch: streams and groups, lease, record, definitions of tasks, crons and handlers.
-- KEYS: 1 epoch, 2 schema, 3 tasks, 4 limits, 5 consumers, 6 leases, 7 crons, 8 cursors, 9... four streams per task, then one event key per handler
-- ARGV: 1 epoch to set if there is none, 2 schema, 3 consumer ('': definitions only), 4 record (JSON), 5 lease ms, 6 service, 7 generation ms,
--       8 number of tasks, 9 number of crons, 10 number of handlers, 11 bell channel, then for each task three: name, definition (JSON), limits (JSON or '');
--       for each cron two: name, definition; for each handler: its task
-- Returns: {epoch, server ms}
-- Errors: SCHEMA when a newer incompatible schema is in use; CONFLICT TASK SERVICE when another living service has a task of this name
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local consumer, service, generation = ARGV[3], ARGV[6], tonumber(ARGV[7])
local tasks, crons, handlers = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])

local schema = tonumber(redis.call('GET', KEYS[2]) or '0')
if schema > tonumber(ARGV[2]) + 1 then
  return redis.error_reply('SCHEMA ' .. schema)
end

local living -- service names with a lease in force, found only when a name clashes
local function lives(other)
  if not living then
    living = {}
    local records = redis.call('HGETALL', KEYS[5])
    for at = 1, #records, 2 do
      local lease = redis.call('ZSCORE', KEYS[6], records[at])
      if lease and tonumber(lease) > now then
        living[cjson.decode(records[at + 1]).service] = true
      end
    end
  end
  return living[other]
end

local at = 12
local changed = crons > 0
local old = {}
for task = 1, tasks do
  local name = ARGV[at + 3 * (task - 1)]
  local known = redis.call('HGET', KEYS[3], name)
  if known then
    known = cjson.decode(known)
    old[task] = known
    if known.service ~= service and not known.shared and lives(known.service) then
      return redis.error_reply('CONFLICT ' .. name .. ' ' .. known.service)
    end
  end
end

if schema < tonumber(ARGV[2]) then
  redis.call('SET', KEYS[2], ARGV[2])
end
redis.call('SET', KEYS[1], ARGV[1], 'NX')
for task = 1, tasks do
  local name, definition, limits = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  at = at + 3
  if not old[task] or (tonumber(old[task].generation_ms) or 0) <= generation then
    redis.call('HSET', KEYS[3], name, definition)
    if (redis.call('HGET', KEYS[4], name) or '') ~= limits then
      changed = true
      if limits == '' then
        redis.call('HDEL', KEYS[4], name)
      else
        redis.call('HSET', KEYS[4], name, limits)
      end
    end
  end
end
for stream = 9, 8 + 4 * tasks do
  redis.pcall('XGROUP', 'CREATE', KEYS[stream], 'w', '0', 'MKSTREAM')
end
for _ = 1, crons do
  local name, definition = ARGV[at], ARGV[at + 1]
  at = at + 2
  local known = redis.call('HGET', KEYS[7], name)
  known = known and cjson.decode(known)
  local given = cjson.decode(definition)
  if not known or (tonumber(known.generation_ms) or 0) <= generation then
    if not known or known.schedule ~= given.schedule or known.timezone ~= given.timezone then
      redis.call('HSET', KEYS[8], name, string.format('%.0f', now))
    end
    given.last_seen_ms = now
    redis.call('HSET', KEYS[7], name, cjson.encode(given))
  end
end
for handler = 1, handlers do
  redis.call('HSET', KEYS[8 + 4 * tasks + handler], ARGV[at], string.format('%.0f', now))
  at = at + 1
end
if consumer ~= '' then
  redis.call('HSET', KEYS[5], consumer, ARGV[4])
  redis.call('ZADD', KEYS[6], string.format('%.0f', now + tonumber(ARGV[5])), consumer)
end
if changed then
  redis.call('SPUBLISH', ARGV[11], 'p')
end
return {redis.call('GET', KEYS[1]), now}

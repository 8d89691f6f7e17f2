#!lua flags=allow-oom
-- Makes a consumer known before its first fetch: streams and groups, lease, record, definitions of tasks, crons and handlers.
-- A limit that operators set stays; a cron that lapsed goes on from its cursor when its schedule is the same. Many tasks take several calls, of which the
-- first names the consumer. Of records and statements that a clash is looked up in, those of the newest leases are read, MOST_READ_BYTES at most.
-- KEYS: 1 epoch, 2 schema, 3 tasks, 4 limits, 5 consumers, 6 leases, 7 crons, 8 cursors, 9 seen, 10 lapsed, 11 limits:set, 12 announcers,
--       13 announced, 14... four streams per task, then one event key per handler
-- ARGV: 1 epoch to set if there is none, 2 schema, 3 consumer ('': definitions only), 4 record (JSON), 5 lease ms, 6 service, 7 generation ms,
--       8 the daemon that registers, 9 stem of the service's file, 10 '1': of passing code, which makes nothing passing that lasts,
--       11 number of tasks, 12 number of crons, 13 number of handlers, 14 bell channel, 15 '1': only look whether it would be refused,
--       then for each task three: name, definition (JSON), limits (JSON or ''); for each cron two: name, definition; for each handler: its task
-- Returns: {epoch ('' before the first), server ms}
-- Errors: SCHEMA when a newer incompatible schema is in use; CONFLICT and JSON {task, service, file, host} when another living service has a task
--         of this name with another signature or in a file of another stem, and the two don't share it
-- include: must_be
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local consumer, service, generation, daemon, stem = ARGV[3], ARGV[6], tonumber(ARGV[7]), ARGV[8], ARGV[9]
local tasks, crons, handlers = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local FIRST_KEY, FIRST_ARG = 14, 16
local MOST_READ_BYTES, MOST_DECODED_BYTES, MOST_LOOKED_AT = 2097152, 262144, 1000

must_be('string', KEYS[1], KEYS[2])
must_be('hash', KEYS[3], KEYS[4], KEYS[5], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12])
must_be('zset', KEYS[6], KEYS[13])
for key = FIRST_KEY, #KEYS do
  must_be(key < FIRST_KEY + 4 * tasks and 'stream' or 'hash', KEYS[key])
end
local schema = tonumber(redis.call('GET', KEYS[2]) or '0')
if not schema or not string.find(redis.call('GET', KEYS[1]) or 'none', '^[%w_.:-]+$') then
  return redis.error_reply('WRONGTYPE ' .. (schema and KEYS[1] or KEYS[2]) .. ' holds text that is not its own')
end
if schema > tonumber(ARGV[2]) + 1 then
  return redis.error_reply('SCHEMA ' .. schema)
end

local function read(raw) -- nil for a row that is missing or can't be read: it is written anew
  local fine, row = pcall(cjson.decode, raw or 'null')
  return fine and type(row) == 'table' and row or nil
end

local function owner(row)
  return row.owner or row.service
end

local read_bytes, decoded_bytes = 0, 0
local function of_the_living(rows, leases, other, add) -- calls `add` with the rows that name the service, by lease, the newest first
  local quoted = string.gsub(cjson.encode(other), '\\/', '/')
  for _, name in ipairs(redis.call('ZRANGE', leases, '+inf', '(' .. now, 'BYSCORE', 'REV', 'LIMIT', 0, MOST_LOOKED_AT)) do
    local raw = redis.call('HGET', rows, name) or ''
    read_bytes = read_bytes + #raw
    if read_bytes > MOST_READ_BYTES then
      return
    end
    if string.find(raw, quoted, 1, true) then
      decoded_bytes = decoded_bytes + #raw
      local row = read(raw)
      if row and row.service == other then
        add(name, row)
      end
      if decoded_bytes > MOST_DECODED_BYTES then
        return
      end
    end
  end
end

local has = {} -- service -> the tasks that its living daemons declare and its living workers serve, read only when a name clashes
local function lives(other, task)
  if not has[other] then
    local names = {}
    has[other] = names
    of_the_living(KEYS[12], KEYS[13], other, function(name, statement)
      for declared in pairs(name ~= daemon and type(statement.declares) == 'table' and statement.declares or {}) do
        names[declared] = true
      end
    end)
    of_the_living(KEYS[5], KEYS[6], other, function(_, record)
      for _, served in ipairs(record.daemon ~= daemon and type(record.tasks) == 'table' and record.tasks or {}) do
        names[served] = true
      end
    end)
  end
  return has[other][task]
end

local function refuse(name, known, given)
  local other = owner(known)
  if not other or other == service or (known.shared == true and given.shared == true) then
    return nil
  end
  local file = type(known.file) == 'string' and known.file or nil
  local its_stem = string.match(file or other, '([^/]*)$')
  its_stem = file and string.gsub(its_stem, '%.py$', '') or string.match(its_stem, '([^.]*)$')
  if (its_stem ~= stem or known.signature ~= given.signature) and lives(other, name) then
    local host = type(known.host) == 'string' and known.host or ''
    return redis.error_reply('CONFLICT ' .. cjson.encode({task = name, service = other, file = file or '', host = host}))
  end
end

local at = FIRST_ARG
local changed = crons > 0
local definitions, limits = {}, {}
for task = 1, tasks do
  local name, definition, limit = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  at = at + 3
  local known = read(redis.call('HGET', KEYS[3], name))
  if known then
    local given = cjson.decode(definition)
    local refused = refuse(name, known, given)
    if refused then
      return refused
    end
    if ARGV[10] == '1' and not known.passing then
      given.passing = nil
      definition = cjson.encode(given)
    end
  end
  if not known or (tonumber(known.generation_ms) or 0) <= generation then
    definitions[#definitions + 1] = name
    definitions[#definitions + 1] = definition
    local set = redis.call('HGET', KEYS[11], name)
    limit = set and (set == 'null' and '' or set) or limit
    if (redis.call('HGET', KEYS[4], name) or '') ~= limit then
      limits[#limits + 1] = {name, limit}
    end
  end
end
local rows, cursors = {}, {}
for _ = 1, crons do
  local name, definition = ARGV[at], ARGV[at + 1]
  at = at + 2
  local known = read(redis.call('HGET', KEYS[7], name))
  if not known or (tonumber(known.generation_ms) or 0) <= generation then
    local given = cjson.decode(definition)
    local before = known or read(redis.call('HGET', KEYS[10], name))
    if not before or before.schedule ~= given.schedule or before.timezone ~= given.timezone then
      cursors[#cursors + 1] = name
    end
    given.last_seen_ms = now
    rows[#rows + 1] = {name, cjson.encode(given)}
  end
end

if ARGV[15] == '1' then
  return {redis.call('GET', KEYS[1]) or '', now}
end
if schema < tonumber(ARGV[2]) then
  redis.call('SET', KEYS[2], ARGV[2])
end
redis.call('SET', KEYS[1], ARGV[1], 'NX')
local now_text = string.format('%.0f', now)
for index = 1, #definitions, 2 do
  redis.call('HSET', KEYS[3], definitions[index], definitions[index + 1])
end
for task = 1, tasks do
  redis.call('HSET', KEYS[9], ARGV[FIRST_ARG + 3 * (task - 1)], now_text)
end
for _, limit in ipairs(limits) do
  changed = true
  if limit[2] == '' then
    redis.call('HDEL', KEYS[4], limit[1])
  else
    redis.call('HSET', KEYS[4], limit[1], limit[2])
  end
end
for stream = FIRST_KEY, FIRST_KEY - 1 + 4 * tasks do
  redis.pcall('XGROUP', 'CREATE', KEYS[stream], 'w', '0', 'MKSTREAM')
end
for _, name in ipairs(cursors) do
  redis.call('HSET', KEYS[8], name, now_text)
end
for _, row in ipairs(rows) do
  redis.call('HSET', KEYS[7], row[1], row[2])
  redis.call('HDEL', KEYS[10], row[1])
end
for handler = 1, handlers do
  redis.call('HSET', KEYS[FIRST_KEY - 1 + 4 * tasks + handler], ARGV[at], now_text)
  at = at + 1
end
if consumer ~= '' then
  redis.call('HSET', KEYS[5], consumer, ARGV[4])
  redis.call('ZADD', KEYS[6], string.format('%.0f', now + tonumber(ARGV[5])), consumer)
end
if changed then
  redis.call('SPUBLISH', ARGV[14], 'p')
end
return {redis.call('GET', KEYS[1]), now}

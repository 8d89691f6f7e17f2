#!lua
-- Sends an event: one job for each handler known here or seen within its life, in one step. Refused as a whole by a full Redis.
-- KEYS: 1 event, 2 limits, 3 large, 4 f:
-- ARGV: 1 meta ('' or JSON), 2 stream prefix, 3 bell channel, 4 handler life ms, 5 idempotency prefix, 6 key ('' none), 7 key ttl ms,
--       8 nonce, 9 key that remembers this very send ('' none; a handler's task is added), 10 its ttl ms, 11... handlers that the sender knows,
--       last: payload
-- Returns: for each handler two: its task, the first entry id, `=JOB_ID NONCE` when its key is held, or `!ERROR` when its lane takes nothing
-- Errors: OOM
-- include: must_be
-- include: put_entry
-- include: large
-- include: flow
must_be('hash', KEYS[1], KEYS[2], KEYS[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local handlers, seen = {}, {}
local known = redis.call('HGETALL', KEYS[1])
for at = 1, #known, 2 do
  if (tonumber(known[at + 1]) or 0) + tonumber(ARGV[4]) >= now then
    handlers[#handlers + 1] = known[at]
    seen[known[at]] = true
  else
    redis.call('HDEL', KEYS[1], known[at])
  end
end
for at = 11, #ARGV - 1 do
  if not seen[ARGV[at]] then
    handlers[#handlers + 1] = ARGV[at]
    seen[ARGV[at]] = true
  end
end
if #handlers == 0 then
  return {}
end
table.sort(handlers)
local payload = ARGV[#ARGV]
for _, task in ipairs(handlers) do
  if is_largest(KEYS[3], task, #payload) then
    redis.call('HSET', KEYS[3], task, #payload)
  end
end
local limits = redis.call('HMGET', KEYS[2], unpack(handlers))
local reply, keys = {}, {flow = KEYS[4]}
local common = ARGV[1] ~= '' and cjson.decode(ARGV[1]) or {}
for index, task in ipairs(handlers) do
  local key = ARGV[6] ~= '' and ARGV[5] .. ARGV[6] .. '@' .. task
  local held = key and (redis.call('GET', ARGV[9] .. task) or redis.pcall('GET', key))
  local id, why
  if type(held) == 'string' then
    id = '=' .. held
  else
    local meta = ARGV[1]
    if key then
      local said = meta == '' and {} or cjson.decode(meta)
      said.k = ARGV[6] .. '@' .. task
      meta = cjson.encode(said)
    end
    id, why = put_entry(ARGV[2] .. task .. ':n', meta == '' and {'p1', payload} or {'p1', payload, 'm', meta})
    if id then
      note_child(keys, now, 'o', task .. ':n' .. id, common)
    end
    id = id or '!' .. why
    if key and not why then
      local holder = task .. ':n' .. id .. ' ' .. ARGV[8]
      redis.call('SET', key, holder, 'PX', ARGV[7])
      redis.call('SET', ARGV[9] .. task, holder, 'PX', ARGV[10])
    end
    if limits[index] then
      redis.call('SPUBLISH', ARGV[3], 't' .. task)
    end
  end
  reply[#reply + 1] = task
  reply[#reply + 1] = id
end
return reply

#!lua
-- Sends an event: one job for each handler known here or seen within its life. So many as a call may take get theirs in one step, in the order of their names;
-- the sender goes on with the others. Refused as a whole by a full Redis.
-- KEYS: 1 event, 2 limits, 3 large, 4 f:
-- ARGV: 1 meta ('' or JSON), 2 stream prefix, 3 bell channel, 4 handler life ms ('': the handlers named here, no others), 5 idempotency prefix,
--       6 key ('' none), 7 key ttl ms, 8 nonce, 9 key that remembers this very send ('' none; a handler's task is added), 10 its ttl ms,
--       11 most handlers, 12 most bytes of their jobs (one is taken always), 13... handlers that the sender knows, last: payload
-- Returns: for each handler two: its task, the first entry id, `=JOB_ID NONCE` when this send or another of its key made its job before, `!ERROR` when its
--          lane takes nothing, or `>` when it is left for another call
-- Errors: OOM
-- include: must_be
-- include: put_entry
-- include: large
-- include: flow
must_be('hash', KEYS[1], KEYS[2], KEYS[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local payload, handlers, seen = ARGV[#ARGV], {}, {}
local known = ARGV[4] ~= '' and redis.call('HGETALL', KEYS[1]) or {}
for at = 1, #known, 2 do
  if (tonumber(known[at + 1]) or 0) + tonumber(ARGV[4]) >= now then
    handlers[#handlers + 1] = known[at]
    seen[known[at]] = true
  else
    redis.call('HDEL', KEYS[1], known[at])
  end
end
for at = 13, #ARGV - 1 do
  if not seen[ARGV[at]] then
    handlers[#handlers + 1] = ARGV[at]
    seen[ARGV[at]] = true
  end
end
if #handlers == 0 then
  return {}
end
table.sort(handlers)
local most, most_bytes = tonumber(ARGV[11]), tonumber(ARGV[12])
local reply, keys, bytes = {}, {flow = KEYS[4]}, 0
local limits = redis.call('HMGET', KEYS[2], unpack(handlers, 1, math.min(#handlers, most)))
local common = ARGV[1] ~= '' and cjson.decode(ARGV[1]) or {}
for index, task in ipairs(handlers) do
  local key = ARGV[6] ~= '' and ARGV[5] .. ARGV[6] .. '@' .. task
  local made_before = ARGV[9] ~= '' and ARGV[9] .. task
  local left = index > 1 and (index > most or bytes + #payload > most_bytes)
  local held = not left and (made_before and redis.call('GET', made_before) or key and redis.pcall('GET', key))
  local id, why
  if left then
    id = '>'
  elseif type(held) == 'string' then
    id = '=' .. held
  else
    local meta = ARGV[1]
    if key then
      local fields = meta == '' and {} or cjson.decode(meta)
      fields.k = ARGV[6] .. '@' .. task
      meta = cjson.encode(fields)
    end
    if is_largest(KEYS[3], task, #payload) then
      redis.call('HSET', KEYS[3], task, #payload)
    end
    id, why = put_entry(ARGV[2] .. task .. ':n', meta == '' and {'p1', payload} or {'p1', payload, 'm', meta})
    if id then
      bytes = bytes + #payload
      note_child(keys, now, 'o', task .. ':n' .. id, common)
    end
    local holder = id and task .. ':n' .. id .. ' ' .. ARGV[8]
    if id and key then
      redis.call('SET', key, holder, 'PX', ARGV[7])
    end
    if id and made_before then
      redis.call('SET', made_before, holder, 'PX', ARGV[10])
    end
    id = id or '!' .. why
    if limits[index] then
      redis.call('SPUBLISH', ARGV[3], 't' .. task)
    end
  end
  reply[#reply + 1] = task
  reply[#reply + 1] = id
end
return reply

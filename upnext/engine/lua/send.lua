#!lua
-- Sends an event: one job for each handler known here or seen within its life, in one step. Refused as a whole by a full Redis.
-- KEYS: 1 event, 2 limits
-- ARGV: 1 payload, 2 meta ('' or JSON), 3 stream prefix, 4 bell channel, 5 handler life ms, 6 idempotency prefix, 7 key ('' none), 8 key ttl ms,
--       9 nonce, 10 key that remembers this very send ('' none; a handler's task is added), 11 its ttl ms, 12... handlers that the sender knows
-- Returns: for each handler two: its task, the first entry id, or `=JOB_ID NONCE` when its key is held
-- Errors: OOM
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local handlers, seen = {}, {}
local known = redis.call('HGETALL', KEYS[1])
for at = 1, #known, 2 do
  if tonumber(known[at + 1]) + tonumber(ARGV[5]) >= now then
    handlers[#handlers + 1] = known[at]
    seen[known[at]] = true
  else
    redis.call('HDEL', KEYS[1], known[at])
  end
end
for at = 12, #ARGV do
  if not seen[ARGV[at]] then
    handlers[#handlers + 1] = ARGV[at]
    seen[ARGV[at]] = true
  end
end
table.sort(handlers)
local reply = {}
for _, task in ipairs(handlers) do
  local key = ARGV[7] ~= '' and ARGV[6] .. ARGV[7] .. '@' .. task
  local held = key and (redis.call('GET', ARGV[10] .. task) or redis.call('GET', key))
  local id
  if held then
    id = '=' .. held
  else
    local meta = ARGV[2]
    if key then
      local said = meta == '' and {} or cjson.decode(meta)
      said.k = ARGV[7] .. '@' .. task
      meta = cjson.encode(said)
    end
    if meta == '' then
      id = redis.call('XADD', ARGV[3] .. task .. ':n', '*', 'p1', ARGV[1])
    else
      id = redis.call('XADD', ARGV[3] .. task .. ':n', '*', 'p1', ARGV[1], 'm', meta)
    end
    if key then
      local holder = task .. ':n' .. id .. ' ' .. ARGV[9]
      redis.call('SET', key, holder, 'PX', ARGV[8])
      redis.call('SET', ARGV[10] .. task, holder, 'PX', ARGV[11])
    end
    if redis.call('HEXISTS', KEYS[2], task) == 1 then
      redis.call('PUBLISH', ARGV[4], 't' .. task)
    end
  end
  reply[#reply + 1] = task
  reply[#reply + 1] = id
end
return reply

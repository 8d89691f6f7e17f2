#!lua flags=no-writes
-- Jobs of one task that a consumer holds.
-- KEYS: 1... lanes normal, high, back, suspect
-- ARGV: 1 most jobs
-- Returns: {server ms, then fives: lane letter, entry id, meta or nil, consumer, ms since it was fetched}
-- Errors: none
local time = redis.call('TIME')
local reply = {time[1] * 1000 + math.floor(time[2] / 1000)}
local left = tonumber(ARGV[1])
for _, stream in ipairs(KEYS) do
  local pending = left > 0 and redis.pcall('XPENDING', stream, 'w', '-', '+', left) or {}
  for _, held in ipairs(pending.err and {} or pending) do
    local entry = redis.call('XRANGE', stream, held[1], held[1])[1]
    if entry then
      local size = #reply
      reply[size + 1], reply[size + 2], reply[size + 3] = string.sub(stream, -1), held[1], entry[2][4] or false
      reply[size + 4], reply[size + 5] = held[2], held[3]
      left = left - 1
    end
  end
end
return reply

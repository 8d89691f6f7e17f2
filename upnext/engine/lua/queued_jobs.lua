#!lua flags=no-writes
-- Jobs of one task that wait in its lanes, oldest first in each lane.
-- KEYS: 1... lanes normal, high, back, suspect
-- ARGV: 1 most jobs
-- Returns: triples: lane letter, entry id, meta or nil
-- Errors: none
-- include: last_fetched
local limit = tonumber(ARGV[1])
local reply = {}
for _, stream in ipairs(KEYS) do
  local left = limit - #reply / 3
  if left > 0 then
    for _, entry in ipairs(redis.call('XRANGE', stream, '(' .. last_fetched(stream), '+', 'COUNT', left)) do
      local size = #reply
      reply[size + 1], reply[size + 2], reply[size + 3] = string.sub(stream, -1), entry[1], entry[2][4] or false
    end
  end
end
return reply

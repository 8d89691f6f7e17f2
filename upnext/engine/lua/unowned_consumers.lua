#!lua flags=no-writes
-- Consumers of some groups that have neither a lease nor a grave: a read that arrived after its consumer was reaped made Redis create it anew.
-- KEYS: 1 epoch, 2 leases, 3 graves, 4... streams
-- ARGV: 1 epoch, 2 most consumers: no further stream is looked at after so many
-- Returns: {number of streams looked at, then pairs: position of the stream from 1, consumer}
-- Errors: EPOCH
-- include: epoch
-- include: pass_over
pass_over('zset', 2, 3)
local reply = {0}
local left = tonumber(ARGV[2])
for at = 4, #KEYS do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[at], 'w') -- an error: no stream or no group, so no consumers
  for _, fields in ipairs(consumers.err and {} or consumers) do
    local name
    for field = 1, #fields, 2 do
      if fields[field] == 'name' then
        name = fields[field + 1]
      end
    end
    if not redis.call('ZSCORE', KEYS[2], name) and not redis.call('ZSCORE', KEYS[3], name) then
      reply[#reply + 1] = at - 3
      reply[#reply + 1] = name
    end
    left = left - 1
  end
  reply[1] = at - 3
  if left <= 0 then
    break
  end
end
return reply

#!lua flags=no-writes
-- Reports of daemons, by name: of the 1,000 that reported last, a part.
-- KEYS: 1 daemons
-- ARGV: 1 daemon prefix, 2 daemon to go on after ('': from the first), 3 most daemons, 4 most bytes read
-- Returns: {daemon to go on after ('': that was the last), server ms, then pairs: daemon, {field, value, ...}}
-- Errors: none
-- include: pass_over
pass_over('zset', 1)
local time = redis.call('TIME')
local reply = {'', time[1] * 1000 + math.floor(time[2] / 1000)}
local daemons = redis.call('ZREVRANGE', KEYS[1], 0, 999)
table.sort(daemons)
local most, left = tonumber(ARGV[3]), tonumber(ARGV[4])
for _, daemon in ipairs(daemons) do
  if daemon > ARGV[2] then
    if most == 0 or left <= 0 then
      reply[1] = reply[#reply - 1]
      break
    end
    local fields, size = redis.pcall('HGETALL', ARGV[1] .. daemon), #reply
    fields = fields.err and {} or fields
    reply[size + 1], reply[size + 2] = daemon, fields
    most = most - 1
    for _, part in ipairs(fields) do
      left = left - #part
    end
  end
end
return reply

#!lua flags=no-writes
-- A part of the consumers: their records, and whether their leases are kept.
-- KEYS: 1 consumers, 2 leases, 3 graves
-- ARGV: 1 cursor ('0' at first), 2 about how many to look at
-- Returns: {next cursor ('0' at the end), server ms, then triples: consumer, record, lease end in ms (-1: none, -2: it is being reaped)}
-- Errors: none
-- include: pass_over
pass_over('hash', 1)
pass_over('zset', 2, 3)
local time = redis.call('TIME')
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local reply = {page[1], time[1] * 1000 + math.floor(time[2] / 1000)}
for at = 1, #page[2], 2 do
  local name, size = page[2][at], #reply
  local lease = redis.call('ZSCORE', KEYS[2], name) or (redis.call('ZSCORE', KEYS[3], name) and '-2' or '-1')
  reply[size + 1], reply[size + 2], reply[size + 3] = name, page[2][at + 1], lease
end
return reply

#!lua flags=no-writes
-- A part of the known crons and when each ran last.
-- KEYS: 1 crons, 2 fired, 3 stats, 4 paused, 5 cursors
-- ARGV: 1 cursor ('0' at first), 2 about how many
-- Returns: {next cursor ('0' at the end), server ms, then for each six: name, definition, newest tick that fired, ms, or nil; ticks that were skipped, or nil;
--          1 when its task is paused; its newest tick that fired or was skipped, or nil}
-- Errors: none
-- include: pass_over
pass_over('hash', 1, 2, 3, 5)
pass_over('set', 4)
local time = redis.call('TIME')
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local reply, crons = {page[1], time[1] * 1000 + math.floor(time[2] / 1000)}, page[2]
for at = 1, #crons, 2 do
  local size = #reply
  reply[size + 1], reply[size + 2], reply[size + 3] = crons[at], crons[at + 1], redis.call('HGET', KEYS[2], crons[at])
  reply[size + 4] = redis.call('HGET', KEYS[3], crons[at] .. ':skipped')
  reply[size + 5] = redis.call('SISMEMBER', KEYS[4], crons[at])
  reply[size + 6] = redis.call('HGET', KEYS[5], crons[at])
end
return reply

#!lua flags=no-writes
-- A part of the jobs below a root.
-- KEYS: 1 the flow
-- ARGV: 1 cursor, 2 about how many
-- Returns: {next cursor, then pairs: job id, row}
-- Errors: none
-- include: pass_over
pass_over('hash', 1)
local found = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local reply = found[2]
table.insert(reply, 1, found[1])
return reply

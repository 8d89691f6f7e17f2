#!lua flags=no-writes
-- Jobs of one task that wait in a lane, oldest first.
-- KEYS: 1 the lane's stream
-- ARGV: 1 entry id to go on after ('': from the first that waits), 2 most jobs, 3 most bytes read
-- Returns: {entry id to go on after ('': that was the last), then pairs: entry id, meta or nil}
-- Errors: none
-- include: last_fetched
-- include: walk
-- include: pass_over
pass_over('stream', 1)
local reply = {''}
local last = ARGV[1] ~= '' and ARGV[1] or last_fetched(KEYS[1])
local _, more = walk(KEYS[1], '(' .. last, '+', tonumber(ARGV[2]), tonumber(ARGV[3]), false, function(id, fields)
  last = id
  reply[#reply + 1] = id
  reply[#reply + 1] = fields[4] or false
end)
reply[1] = more and last or ''
return reply

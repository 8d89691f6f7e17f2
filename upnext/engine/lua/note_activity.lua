#!lua flags=allow-oom
-- Appends events of a daemon to what is kept of all daemons; leaves out those that stand among its newest entries already.
-- KEYS: 1 activity
-- ARGV: 1 daemon, 2 how many entries are kept, 3... pairs: LIFE-NUMBER of an event, its JSON; at most 50
-- Returns: how many were appended
-- Errors: none
-- include: must_be
must_be('stream', KEYS[1])
local there = {}
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 200)) do
  local fields = entry[2]
  if fields[4] == ARGV[1] then
    there[fields[6] or ''] = true
  end
end
local appended = 0
for at = 3, #ARGV, 2 do
  if not there[ARGV[at]] then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'e', ARGV[at + 1], 'd', ARGV[1], 'n', ARGV[at])
    appended = appended + 1
  end
end
return appended

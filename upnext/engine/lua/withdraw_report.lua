#!lua flags=allow-oom
-- Removes the report of a daemon that stops, unless a successor of this life has reported since.
-- KEYS: 1 daemons, 2 daemons:
-- ARGV: 1 daemon, 2 token of the life that stops
-- Returns: 1 when it was removed
-- Errors: none
local fine, row = pcall(cjson.decode, redis.call('HGET', KEYS[2], 'daemon') or 'null')
if not fine or type(row) ~= 'table' or row.token ~= ARGV[2] then
  return 0
end
for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
  redis.call('HDEL', KEYS[2], field)
end
return redis.call('ZREM', KEYS[1], ARGV[1])

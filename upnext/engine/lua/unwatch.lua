#!lua flags=allow-oom
-- Takes a waiter's registration back.
-- KEYS: 1 waiters
-- ARGV: 1 job id, 2 channel
-- Returns: 1 when it was registered, else 0
-- Errors: none
local channels = redis.call('HGET', KEYS[1], ARGV[1])
if not channels then
  return 0
end
local left, found = {}, 0
for channel in string.gmatch(channels, '%S+') do
  if channel == ARGV[2] then
    found = 1
  else
    left[#left + 1] = channel
  end
end
if #left == 0 then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], table.concat(left, ' '))
end
return found

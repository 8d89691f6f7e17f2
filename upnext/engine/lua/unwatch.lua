#!lua flags=allow-oom
-- Takes a waiter's registration back, unless there is a newer one: a late call must not remove what came after it.
-- KEYS: 1 waiters
-- ARGV: 1 job id, 2 channel, 3 number of the newest registration that is over
-- Returns: 1 when it was registered, else 0
-- Errors: none
local channels = redis.call('HGET', KEYS[1], ARGV[1])
if not channels then
  return 0
end
local left, found = {}, 0
for one in string.gmatch(channels, '%S+') do
  local channel, number = string.match(one, '^(.-)#(%d+)$')
  if channel == ARGV[2] and tonumber(number) <= tonumber(ARGV[3]) then
    found = 1
  else
    left[#left + 1] = one
  end
end
if found == 0 then
  return 0
end
if #left == 0 then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], table.concat(left, ' '))
end
return found

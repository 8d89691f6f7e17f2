#!lua flags=allow-oom
-- Asks how a job stands and registers for its end, in one step, so no end is missed.
-- KEYS: 1 waiters, 2 result, 3 where, 4 delayed:jobs, 5 dead:jobs, 6 the stream it was born in
-- ARGV: 1 job id, 2 its first entry id, 3 channel ('' only asks), 4 number of the registration, rising with each one of the channel
-- Returns: {'r', outcome} ended; {'z', packed} a dead letter; {'w'} alive, registered; {'u'} unknown
-- Errors: none
local outcome = redis.call('GET', KEYS[2])
if outcome then
  return {'r', outcome}
end
local packed = redis.call('HGET', KEYS[5], ARGV[1])
if packed then
  return {'z', packed}
end
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 0 and redis.call('HEXISTS', KEYS[4], ARGV[1]) == 0
  and #redis.call('XRANGE', KEYS[6], ARGV[2], ARGV[2]) == 0 then
  return {'u'}
end
if ARGV[3] ~= '' then
  local kept, newest = {}, tonumber(ARGV[4])
  for other in string.gmatch(redis.call('HGET', KEYS[1], ARGV[1]) or '', '%S+') do
    local channel, number = string.match(other, '^(.-)#(%d+)$')
    if channel == ARGV[3] then
      newest = math.max(newest, tonumber(number))
    else
      kept[#kept + 1] = other
    end
  end
  kept[#kept + 1] = ARGV[3] .. '#' .. string.format('%.0f', newest)
  redis.call('HSET', KEYS[1], ARGV[1], table.concat(kept, ' '))
end
return {'w'}

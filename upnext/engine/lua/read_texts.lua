#!lua flags=no-writes
-- Some strings as they stand, those that are not too long.
-- KEYS: 1... the keys to look at, at most 1,000
-- ARGV: 1 most bytes of one, 2 most bytes of all
-- Returns: how many keys were looked at, then for each two: type found, its text ('' where it is no string), or its length where that is too long
-- Errors: none
local most, left = tonumber(ARGV[1]), tonumber(ARGV[2])
local reply = {0}
for at = 1, #KEYS do
  local found, text = redis.call('TYPE', KEYS[at]).ok, ''
  if found == 'string' then
    local length = redis.call('STRLEN', KEYS[at])
    text = length > most and length or redis.call('GET', KEYS[at])
    left = left - math.min(length, most)
  end
  reply[#reply + 1] = found
  reply[#reply + 1] = text
  reply[1] = at
  if left <= 0 then
    break
  end
end
return reply

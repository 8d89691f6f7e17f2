#!lua flags=no-writes
-- A part of the rows of a hash, set or sorted set, as they stand.
-- KEYS: 1 the key to look at, 2 the key that has a row for each of its rows, or the same again
-- ARGV: 1 its type, 2 cursor, 3 about how many rows, 4 most bytes of a field and of a value
-- Returns: {type found, next cursor ('0': that was the last), bytes read, then fives: field, value or score, bytes of each, 1 when the other key has its row};
--          nothing but the type when that is another one
-- Errors: none
local found = redis.call('TYPE', KEYS[1]).ok
if found ~= ARGV[1] then
  return {found}
end
local SCAN = {hash = 'HSCAN', set = 'SSCAN', zset = 'ZSCAN'}
local other = redis.call('TYPE', KEYS[2]).ok
local function has_row(field)
  if KEYS[2] == KEYS[1] then
    return 1
  elseif other == 'hash' then
    return redis.call('HEXISTS', KEYS[2], field)
  end
  return other == 'zset' and redis.call('ZSCORE', KEYS[2], field) and 1 or 0
end
local page = redis.call(SCAN[found], KEYS[1], ARGV[2], 'COUNT', ARGV[3])
local reply, most, bytes = {found, page[1], 0}, tonumber(ARGV[4]), 0
local step = found == 'set' and 1 or 2
for at = 1, #page[2], step do
  local field, value = page[2][at], step == 2 and page[2][at + 1] or ''
  local size = #reply
  bytes = bytes + #field + #value
  reply[size + 1], reply[size + 2] = string.sub(field, 1, most), string.sub(value, 1, most)
  reply[size + 3], reply[size + 4], reply[size + 5] = #field, #value, has_row(field)
end
reply[3] = bytes
return reply

#!lua flags=allow-oom
-- Removes a row, or a whole key, that was shown to a person: only while it is still what was shown.
-- KEYS: 1 the key, 2 the key that has a row for each of its rows, or the same again, 3 aside
-- ARGV: 1 type that it was found with, 2 'key' or 'row', 3 the row's field ('' for a key), 4 sha1 of its value as far as it was read, or its score, 5 most bytes of that
-- Returns: 1, or 0 when it has changed or is gone
-- Errors: none
local kind, whole, field, most = ARGV[1], ARGV[2] == 'key', ARGV[3], tonumber(ARGV[5])
if redis.call('TYPE', KEYS[1]).ok ~= kind then
  return 0
end
local function unchanged(value)
  return value and redis.sha1hex(string.sub(value, 1, most)) == ARGV[4]
end
if whole then
  if kind == 'string' and ARGV[4] ~= '' and not unchanged(redis.call('GET', KEYS[1])) then
    return 0
  end
  redis.call('UNLINK', KEYS[1])
  if redis.call('TYPE', KEYS[3]).ok == 'hash' then
    redis.call('HDEL', KEYS[3], KEYS[1])
  end
  return 1
end
local done
if kind == 'hash' then
  done = unchanged(redis.call('HGET', KEYS[1], field)) and redis.call('HDEL', KEYS[1], field)
elseif kind == 'zset' then
  local score = redis.call('ZSCORE', KEYS[1], field)
  done = score and tonumber(score) == tonumber(ARGV[4]) and redis.call('ZREM', KEYS[1], field)
elseif kind == 'set' then
  done = redis.call('SREM', KEYS[1], field)
else
  redis.pcall('XACK', KEYS[1], 'w', field)
  done = redis.call('XDEL', KEYS[1], field)
end
if KEYS[2] ~= KEYS[1] and done == 1 then
  local other = redis.call('TYPE', KEYS[2]).ok
  if other == 'hash' then
    redis.call('HDEL', KEYS[2], field)
  elseif other == 'zset' then
    redis.call('ZREM', KEYS[2], field)
  end
end
return done == 1 and 1 or 0

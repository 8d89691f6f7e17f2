#!lua flags=allow-oom
-- Renames keys that hold another type than theirs, or text that can't be read: each costs itself alone, and what it held is kept for people to look at.
-- KEYS: 1 schema, 2 aside, 3 epoch, 4... the keys to look at, at most 1,000
-- ARGV: 1 schema of the caller's version, 2 epoch that the caller knows, written when the one that is there is set aside ('': none), 3 aside prefix,
--       4 prefix of the namespace, then for each key from 4 on two: its type, the pattern of its text ('': any)
-- Returns: for each key that was set aside three: the key, what was wrong with it, its new name. Nothing where a newer version's data is
-- Errors: none
local MOST_ASIDE = 1000
local newest = redis.pcall('GET', KEYS[1])
if type(newest) == 'string' and (tonumber(newest) or 0) > tonumber(ARGV[1]) then
  return {}
end
local time = redis.call('TIME')
local now_us = string.format('%.0f', time[1] * 1000000 + time[2])

local function wrong(key, kind, pattern)
  local found = redis.call('TYPE', key).ok
  if found == 'none' then
    return nil
  elseif found ~= kind then
    return 'held a ' .. found .. ', not a ' .. kind
  elseif pattern ~= '' and (redis.call('STRLEN', key) > 1000 or not string.find(redis.call('GET', key), pattern)) then
    return 'held text that is not its own'
  end
end

local function rename(key)
  local name = ARGV[3] .. string.sub(key, #ARGV[4] + 1)
  if redis.call('RENAMENX', key, name) == 0 then
    name = name .. ':' .. now_us
    redis.call('RENAMENX', key, name)
  end
  return name
end

local reply = {}
local function set_aside(key, why)
  local name = rename(key)
  redis.call('HSET', KEYS[2], name, cjson.encode({key = key, why = why, at_ms = math.floor(time[1] * 1000 + time[2] / 1000)}))
  reply[#reply + 1] = key
  reply[#reply + 1] = why
  reply[#reply + 1] = name
end

local why = wrong(KEYS[2], 'hash', '')
if why then
  set_aside(KEYS[2], why)
end
for at = 4, #KEYS do
  local key = KEYS[at]
  why = wrong(key, ARGV[2 * at - 3], ARGV[2 * at - 2])
  if why and redis.call('HLEN', KEYS[2]) < MOST_ASIDE then
    set_aside(key, why)
    if key == KEYS[3] and ARGV[2] ~= '' then
      redis.call('SET', KEYS[3], ARGV[2])
    end
  end
end
return reply

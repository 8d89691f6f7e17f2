#!lua flags=allow-oom
-- Says that a service's crons and handlers are still there; the newest code's set replaces the service's older one.
-- KEYS: 1 epoch, 2 crons, 3 cursors, 4 fired, 5 tasks, 6... one event key per handler
-- ARGV: 1 epoch, 2 service, 3 generation ms, 4 number of crons, 5 prefix of event keys, then the crons' names, then for each handler: its task
-- Returns: number of crons removed
-- Errors: EPOCH
-- include: epoch
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local service, generation, count = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local mine, removed = {}, 0
for at = 6, #ARGV do
  mine[ARGV[at]] = true
end
local all = redis.call('HGETALL', KEYS[2])
for at = 1, #all, 2 do
  local name, known = all[at], cjson.decode(all[at + 1])
  if known.service == service then
    if mine[name] then
      known.last_seen_ms = now
      redis.call('HSET', KEYS[2], name, cjson.encode(known))
    elseif (tonumber(known.generation_ms) or 0) < generation then
      redis.call('HDEL', KEYS[2], name)
      redis.call('HDEL', KEYS[3], name)
      redis.call('HDEL', KEYS[4], name)
      removed = removed + 1
    end
  end
end
all = redis.call('HGETALL', KEYS[5])
for at = 1, #all, 2 do
  local name = all[at]
  if not mine[name] then
    local known = cjson.decode(all[at + 1])
    if known.service == service and type(known.event) == 'string' and (tonumber(known.generation_ms) or 0) < generation then
      redis.call('HDEL', ARGV[5] .. known.event, name)
    end
  end
end
for key = 6, #KEYS do
  redis.call('HSET', KEYS[key], ARGV[count + key], string.format('%.0f', now))
end
return removed

#!lua flags=allow-oom
-- One beat of a daemon's scheduler: renews the leases of its living consumers, holds or takes the leadership, tells what is due.
-- KEYS: 1 epoch, 2 leases, 3 leader, 4 delayed, 5 graves
-- ARGV: 1 epoch, 2 daemon, 3 token of this scheduler's life, 4 lease ms, 5 leadership ms, 6... consumers
-- Returns: {server ms, leader 1|0, its epoch, next due ms (-1: none), number of missing consumers, those consumers..., then consumers whose lease has
--           ended, or that are dead for 15 s and still not gone}
-- Errors: EPOCH
-- include: epoch
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = string.format('%.0f', now + tonumber(ARGV[4]))
local missing = {}
for at = 6, #ARGV do
  if redis.call('ZSCORE', KEYS[2], ARGV[at]) then
    redis.call('ZADD', KEYS[2], 'XX', lease, ARGV[at])
  else
    missing[#missing + 1] = ARGV[at]
  end
end
local held = redis.call('HMGET', KEYS[3], 'daemon', 'token', 'epoch', 'until_ms')
local leads = 0
local term = tonumber(held[3] or '0')
if held[1] == ARGV[2] and held[2] == ARGV[3] then
  leads = 1
elseif held[1] == ARGV[2] or not held[4] or tonumber(held[4]) < now then
  leads = 1
  term = term + 1
  redis.call('HSET', KEYS[3], 'daemon', ARGV[2], 'token', ARGV[3], 'epoch', term)
end
if leads == 1 then
  redis.call('HSET', KEYS[3], 'until_ms', string.format('%.0f', now + tonumber(ARGV[5])))
end
local head = redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')[2]
local reply = {now, leads, term, head and math.ceil(tonumber(head) / 1000) or -1, #missing}
for _, consumer in ipairs(missing) do
  reply[#reply + 1] = consumer
end
for _, consumer in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. now, 'LIMIT', 0, 20)) do
  reply[#reply + 1] = consumer
end
for _, consumer in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now - 15000, 'LIMIT', 0, 20)) do
  reply[#reply + 1] = consumer
end
return reply

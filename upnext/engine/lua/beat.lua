#!lua flags=allow-oom
-- One beat of a daemon's scheduler: renews the leases of its living consumers, holds or takes the leadership, tells what is due.
-- Whether another's lease or leadership has ended is not judged here, where the clock may be stepped, but by its observer (`upnext.core.leases`).
-- KEYS: 1 epoch, 2 leases, 3 leader, 4 delayed, 5 graves, 6 watched
-- ARGV: 1 epoch, 2 daemon, 3 token of this scheduler's life, 4 lease ms, 5 leadership ms, 6 the leadership that has ended, as this script returned it ('': none),
--       7... consumers
-- Returns: {server ms, leader 1|0, its epoch, next due ms (-1: none), the leadership as it is now, whether daemons are looked at 1|0, number of missing
--           consumers, those consumers..., number of consumers that are dead for 15 s and still not gone, those consumers..., then pairs: a consumer, its
--           lease's end as text. Of more than 1,000 leases the 500 that end first and the 500 that end last}
-- Errors: EPOCH
-- include: epoch
-- include: must_be
must_be('zset', KEYS[2], KEYS[4], KEYS[5])
must_be('hash', KEYS[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = string.format('%.0f', now + tonumber(ARGV[4]))
local missing = {}
for at = 7, #ARGV do
  if redis.call('ZSCORE', KEYS[2], ARGV[at]) then
    redis.call('ZADD', KEYS[2], 'XX', lease, ARGV[at])
  else
    missing[#missing + 1] = ARGV[at]
  end
end
local held = redis.call('HMGET', KEYS[3], 'daemon', 'token', 'epoch', 'until_ms')
local leads = 0
local term = tonumber(held[3]) or 0
if held[1] == ARGV[2] and held[2] == ARGV[3] then
  leads = 1
elseif held[1] == ARGV[2] or not held[4] or held[4] == '0' or term .. ' ' .. held[4] == ARGV[6] then
  leads = 1
  term = term + 1
  redis.call('HSET', KEYS[3], 'daemon', ARGV[2], 'token', ARGV[3], 'epoch', term)
end
local ends = held[4]
if leads == 1 then
  ends = string.format('%.0f', now + tonumber(ARGV[5]))
  redis.call('HSET', KEYS[3], 'until_ms', ends)
end
local head = redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')[2]
local reply = {now, leads, term, head and math.max(0, math.min(4e12, math.ceil(tonumber(head) / 1000))) or -1, term .. ' ' .. ends, redis.call('EXISTS', KEYS[6]), #missing}
local function tell(rows)
  for _, row in ipairs(rows) do
    reply[#reply + 1] = row
  end
end
tell(missing)
local graves = redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now - 15000, 'LIMIT', 0, 20)
if #graves == 0 then -- dug before the clock was set back
  graves = redis.call('ZRANGEBYSCORE', KEYS[5], now + 15000, '+inf', 'LIMIT', 0, 20)
end
reply[#reply + 1] = #graves
tell(graves)
if redis.call('ZCARD', KEYS[2]) <= 1000 then
  tell(redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES'))
else
  tell(redis.call('ZRANGE', KEYS[2], 0, 499, 'WITHSCORES'))
  tell(redis.call('ZRANGE', KEYS[2], -500, -1, 'WITHSCORES'))
end
return reply

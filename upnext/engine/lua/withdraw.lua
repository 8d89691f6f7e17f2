#!lua flags=allow-oom
-- Ends announcers: one at its clean stop, or those whose lease has ended. What they declared stays.
-- KEYS: 1 epoch, 2 announcers, 3 announced
-- ARGV: 1 epoch, 2 '1': only those whose lease has ended, 3 token of the life that stops ('': any; a successor's statement stays), 4... announcers
-- Returns: how many were there
-- Errors: EPOCH
-- include: epoch
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local gone = {}
for at = 4, #ARGV do
  local lease = redis.call('ZSCORE', KEYS[3], ARGV[at])
  local stated = ''
  if ARGV[3] ~= '' then
    local fine, record = pcall(cjson.decode, redis.call('HGET', KEYS[2], ARGV[at]) or 'null')
    stated = fine and type(record) == 'table' and record.token or ''
  end
  if (ARGV[2] ~= '1' or not lease or tonumber(lease) < now) and (ARGV[3] == '' or ARGV[3] == stated) then
    gone[#gone + 1] = ARGV[at]
  end
end
local count = 0
for _, announcer in ipairs(gone) do
  redis.call('ZREM', KEYS[3], announcer)
  count = count + redis.call('HDEL', KEYS[2], announcer)
end
return count

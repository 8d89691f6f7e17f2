#!lua flags=allow-oom
-- Lists what the broker believes a consumer holds, to be compared with what it does hold (a lost reply leaves entries that no attempt runs).
-- KEYS: 1 epoch, 2... streams
-- ARGV: 1 epoch, 2 consumer, 3 most entries
-- Returns: {position of the stream from 1, entry id, ...} flat
-- Errors: EPOCH
-- include: epoch
local reply = {}
local left = tonumber(ARGV[3])
for at = 2, #KEYS do
  if left <= 0 then
    break
  end
  for _, row in ipairs(redis.call('XPENDING', KEYS[at], 'w', '-', '+', left, ARGV[2])) do
    reply[#reply + 1] = at - 1
    reply[#reply + 1] = row[1]
    left = left - 1
  end
end
return reply

#!lua flags=allow-oom
-- Records the connection that a consumer reads on, so that a reaper can cut it. Refused once the consumer is reaped: what it reads then would never be taken back.
-- KEYS: 1 epoch, 2 consumers, 3 leases
-- ARGV: 1 epoch, 2 consumer, 3 client id
-- Returns: 1
-- Errors: EPOCH; REAPED when the consumer has no record or no lease
-- include: epoch
local record = redis.call('HGET', KEYS[2], ARGV[2])
if not record or not redis.call('ZSCORE', KEYS[3], ARGV[2]) then
  return redis.error_reply('REAPED ' .. ARGV[2])
end
record = cjson.decode(record)
record.client_id = tonumber(ARGV[3])
redis.call('HSET', KEYS[2], ARGV[2], cjson.encode(record))
return 1

#!lua flags=allow-oom
-- Tells which connection a consumer fetches on by now, so that a reaper can cut it.
-- KEYS: 1 epoch, 2 consumers
-- ARGV: 1 epoch, 2 consumer, 3 client id
-- Returns: 1, or 0 when the consumer is unknown
-- Errors: EPOCH
-- include: epoch
local record = redis.call('HGET', KEYS[2], ARGV[2])
if not record then
  return 0
end
record = cjson.decode(record)
record.client_id = tonumber(ARGV[3])
redis.call('HSET', KEYS[2], ARGV[2], cjson.encode(record))
return 1

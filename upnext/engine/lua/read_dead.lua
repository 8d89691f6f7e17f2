#!lua flags=no-writes
-- One dead letter.
-- KEYS: 1 dead, 2 dead:jobs
-- ARGV: 1 job id
-- Returns: {ms of death, packed job}, or nothing for a job that is not a dead letter
-- Errors: none
-- include: pass_over
pass_over('zset', 1)
pass_over('hash', 2)
local died = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not died then
  return {}
end
return {died, redis.call('HGET', KEYS[2], ARGV[1])}

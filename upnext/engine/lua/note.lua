#!lua
-- Keeps what a running job notes: its progress and checkpoint. Fenced by the entry id. Refused by a full Redis (no allow-oom).
-- KEYS: 1 the stream that holds the job, 2 notes
-- ARGV: 1 entry id, 2 job id, 3 all its notes (JSON), at most about 2 MiB
-- Returns: 1, or 0 when the job is another owner's or has ended
-- Errors: OOM
-- include: must_be
must_be('hash', KEYS[2])
local held = redis.pcall('XPENDING', KEYS[1], 'w', ARGV[1], ARGV[1], 1)
if held.err or #held == 0 then
  return 0
end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
return 1

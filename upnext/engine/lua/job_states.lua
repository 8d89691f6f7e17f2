#!lua flags=no-writes
-- How jobs stand, in one word each.
-- KEYS: 1 where, 2 delayed, 3 dead
-- ARGV: 1 stream prefix, 2 result prefix, then for each job four: id, task, letter of birth, first entry id
-- Returns: for each: queued, running, delayed, dead, the status of its outcome, or unknown
-- Errors: none
-- include: pass_over
pass_over('hash', 1)
pass_over('zset', 2, 3)
local function state(job, task, lane, entry)
  local place = redis.call('HGET', KEYS[1], job)
  if place then
    lane, entry = string.match(place, '^(%l) (%S+)$')
  end
  if lane and string.find('nhbx', lane, 1, true) then
    local stream = ARGV[1] .. task .. ':' .. lane
    local held = redis.pcall('XPENDING', stream, 'w', entry, entry, 1)
    if not held.err and held[1] then
      return 'running'
    end
    local found = redis.pcall('XRANGE', stream, entry, entry)
    if not found.err and found[1] then
      return 'queued'
    end
  end
  if redis.call('ZSCORE', KEYS[2], job) then
    return 'delayed'
  end
  local outcome = redis.pcall('GET', ARGV[2] .. job)
  local status = type(outcome) == 'string' and string.match(outcome, '"s":"(%l+)"')
  return status or (redis.call('ZSCORE', KEYS[3], job) and 'dead') or 'unknown'
end
local reply = {}
for at = 3, #ARGV, 4 do
  reply[#reply + 1] = state(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
end
return reply

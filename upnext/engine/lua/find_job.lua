#!lua flags=no-writes
-- Where one job is, and what is known about it.
-- KEYS: 1 where, 2 delayed, 3 delayed:jobs, 4 its result, 5 dead, 6 dead:jobs, 7 cancel, 8 notes, 9 tasks, 10 consumers,
--       11... lanes normal, high, back, suspect of its task
-- ARGV: 1 job id, 2 task, 3 letter of birth, 4 first entry id
-- Returns: {server ms, ms of a cancel request or nil, notes or nil, the task's definition or nil, kind, ...}; kind and what follows:
--          s: lane letter, entry id, payload, meta or nil, consumer or nil, ms since it was fetched or nil, the consumer's record or nil
--          d: due us, packed job · r: outcome · z: ms of death, packed job · u: nothing, it is unknown
-- Errors: none
-- include: pass_over
pass_over('hash', 1, 3, 6, 7, 8, 9, 10)
pass_over('zset', 2, 5)
pass_over('string', 4)
pass_over('stream', 11, 12, 13, 14)
local job = ARGV[1]
local time = redis.call('TIME')
local reply = {
  time[1] * 1000 + math.floor(time[2] / 1000), redis.call('HGET', KEYS[7], job), redis.call('HGET', KEYS[8], job), redis.call('HGET', KEYS[9], ARGV[2]),
}

local function answer(...)
  for _, value in ipairs({...}) do
    reply[#reply + 1] = value
  end
  return reply
end

local lane, entry = ARGV[3], ARGV[4]
local place = redis.call('HGET', KEYS[1], job)
if place then
  lane, entry = string.match(place, '^(%l) (%S+)$')
end
local LANES = {n = 11, h = 12, b = 13, x = 14}
if LANES[lane] then
  local stream = KEYS[LANES[lane]]
  local found = redis.call('XRANGE', stream, entry, entry)[1]
  if found then
    local fields = found[2]
    local holder = redis.pcall('XPENDING', stream, 'w', entry, entry, 1)
    holder = not holder.err and holder[1]
    return answer('s', lane, entry, fields[2], fields[4] or false, holder and holder[2], holder and holder[3],
      holder and redis.call('HGET', KEYS[10], holder[2]))
  end
end
local due = redis.call('ZSCORE', KEYS[2], job)
if due then
  return answer('d', due, redis.call('HGET', KEYS[3], job))
end
local outcome = redis.call('GET', KEYS[4])
if outcome then
  return answer('r', outcome)
end
local died = redis.call('ZSCORE', KEYS[5], job)
if died then
  return answer('z', died, redis.call('HGET', KEYS[6], job))
end
return answer('u')

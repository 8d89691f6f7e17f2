#!lua flags=allow-oom
-- Fires one tick of a cron: at most once ever, only when it is due by the server's clock, only for the leader's current term.
-- A skipped tick may move the cursor back when that is far ahead of the server's clock, which was set back then.
-- A paused cron doesn't fire, and its cursor stays: when it is resumed, the pause is one gap, for its missed-run policy.
-- So does a schedule that was made at run time, also while its task is not registered; it fires with the arguments that are kept beside it.
-- KEYS: 1 epoch, 2 leader, 3 crons or schedules, 4 cursors or their state, 5 limits, 6 the task's stream, 7 fired or their state,
--       8 stats or their state, 9 paused, 10 schedules:arguments, 11 tasks, 12 large
-- ARGV: 1 epoch, 2 the leader's term, 3 cron or schedule, 4 tick ms, 5 payload (of a cron), 6 meta, 7 bell channel,
--       8 '0': only move the cursor (a tick that is skipped), 9 so many ms ahead the cursor may be, 10 idempotency prefix,
--       11 key that the job of a tick holds until it ends, so that no two overlap ('' none), 12 its ttl ms, 13 its task, 14 the stream's lane letter,
--       15 a schedule's row as it was read ('' of a cron), 16 field of the newest tick that fired, 17 field of the ticks that were skipped
-- Returns: {1, entry id} fired; {2, cursor ms} it was fired or skipped before; {3, ms until due} too early; {4, 0} the cron is gone, or the
--          schedule is another; {5, job id} the job of an earlier tick has not ended: this tick is skipped, and counted; {6, 0} it is paused;
--          {7, 0} the schedule's task is not registered
-- Errors: EPOCH; TERM when another scheduler leads
-- include: epoch
-- include: must_be
-- include: large
must_be('hash', KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[7], KEYS[8], KEYS[10], KEYS[11], KEYS[12])
must_be('set', KEYS[9])
if redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[2] then
  return redis.error_reply('TERM another scheduler leads')
end
local name, task, made = ARGV[3], ARGV[13], ARGV[15] ~= ''
local row = redis.call('HGET', KEYS[3], name)
if not row or (made and row ~= ARGV[15]) then
  return {4, 0}
end
local tick = tonumber(ARGV[4])
local cursor = tonumber(redis.call('HGET', KEYS[4], name) or '0') or 0
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
if cursor >= tick and not (ARGV[8] == '0' and cursor > now + tonumber(ARGV[9])) then
  return {2, cursor}
end
local wait = tick - now
if wait > 0 then
  return {3, math.ceil(wait)}
end
local fires = ARGV[8] ~= '0'
if fires and (redis.call('SISMEMBER', KEYS[9], task) == 1 or (made and redis.call('HEXISTS', KEYS[4], name .. ' paused') == 1)) then
  return {6, 0}
end
if fires and made and redis.call('HEXISTS', KEYS[11], task) == 0 then
  return {7, 0}
end
local held = fires and ARGV[11] ~= '' and redis.pcall('GET', ARGV[10] .. ARGV[11])
if type(held) == 'string' then
  redis.call('HINCRBY', KEYS[8], ARGV[17], 1)
  redis.call('HSET', KEYS[4], name, ARGV[4])
  return {5, string.match(held, '^%S+') or ''}
end
local id = ''
if fires then
  local payload = made and (redis.call('HGET', KEYS[10], name) or '{}') or ARGV[5]
  if is_largest(KEYS[12], task, #payload) then
    redis.call('HSET', KEYS[12], task, #payload)
  end
  id = redis.call('XADD', KEYS[6], '*', 'p1', payload, 'm', ARGV[6])
  redis.call('HSET', KEYS[7], ARGV[16], ARGV[4])
  if ARGV[11] ~= '' then
    redis.call('SET', ARGV[10] .. ARGV[11], task .. ':' .. ARGV[14] .. id .. ' ' .. ARGV[4], 'PX', ARGV[12])
  end
end
redis.call('HSET', KEYS[4], name, ARGV[4])
if not fires then
  return {1, ''}
end
if redis.call('HEXISTS', KEYS[5], task) == 1 then
  redis.call('SPUBLISH', ARGV[7], 't' .. task)
end
return {1, id}

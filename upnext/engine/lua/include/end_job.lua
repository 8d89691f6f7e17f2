-- end_job: what every terminal path does besides removing the entry: outcome, waiters, idempotency key, location, notes, dead letter.
-- Expects dead_total, `keys` = {where, waiters, dead, dead_jobs, cancel, notes, dead_bytes, result, idem, ended, reply} (the last four are prefixes), `now`.
-- The caller has made sure of the keys' types (must_be): nothing here fails.
-- Of dead letters the newest MOST_DEAD are kept, and of these so many as are MOST_DEAD_BYTES with their notes: a task that always fails must not fill
-- the broker. One run of a script removes MOST_DROPPED of them.
local MOST_DEAD, MOST_DEAD_BYTES, MOST_DROPPED = 100000, 268435456, 1000
local DEAD_KEY_MS = 604800000
local dropped = 0
local function add_dead(keys, now, job, packed)
  local count, bytes = dead_total(keys)
  if redis.call('HEXISTS', keys.dead_jobs, job) == 1 then
    count, bytes = count - 1, bytes - dead_size(keys, job)
  end
  redis.call('HSET', keys.dead_jobs, job, packed)
  redis.call('ZADD', keys.dead, string.format('%.0f', now), job)
  count, bytes = count + 1, bytes + dead_size(keys, job)
  while count > 1 and dropped < MOST_DROPPED and (count > MOST_DEAD or bytes > MOST_DEAD_BYTES) do
    local oldest = redis.call('ZRANGE', keys.dead, 0, 0)[1]
    count, bytes, dropped = count - 1, bytes - dead_size(keys, oldest), dropped + 1
    redis.call('ZREM', keys.dead, oldest)
    redis.call('HDEL', keys.dead_jobs, oldest)
    redis.call('HDEL', keys.notes, oldest)
  end
  keep_dead_total(keys, count, bytes)
end
local function end_job(keys, now, job, outcome, ttl_ms, meta, dead_packed, moved)
  if ttl_ms > 0 then
    redis.call('SET', keys.result .. job, outcome, 'PX', ttl_ms)
  end
  if dead_packed then
    if type(meta.n) == 'string' then
      redis.call('HSET', keys.notes, job, meta.n)
    end
    add_dead(keys, now, job, dead_packed)
  elseif moved or meta.i or meta.n then
    redis.call('HDEL', keys.notes, job)
  end
  if moved then
    redis.call('HDEL', keys.where, job)
  end
  if meta.w then
    redis.call('SPUBLISH', keys.reply .. meta.w, job .. '\n' .. outcome)
  end
  if keys.have_waiters then
    local channels = redis.call('HGET', keys.waiters, job)
    if channels then
      redis.call('HDEL', keys.waiters, job)
      for channel in string.gmatch(channels, '([^%s#]+)#?%d*') do
        redis.call('SPUBLISH', keys.reply .. channel, job .. '\n' .. outcome)
      end
    end
  end
  if meta.k then
    local held = redis.pcall('GET', keys.idem .. meta.k)
    if type(held) == 'string' and string.sub(held, 1, #job + 1) == job .. ' ' then
      redis.call('DEL', keys.idem .. meta.k)
    end
    local kept_ms = dead_packed and math.max(ttl_ms, DEAD_KEY_MS) or ttl_ms
    if kept_ms > 0 then
      redis.call('SET', keys.ended .. meta.k, job, 'PX', string.format('%.0f', kept_ms))
    end
  end
  if keys.have_cancels then
    redis.call('HDEL', keys.cancel, job)
  end
end

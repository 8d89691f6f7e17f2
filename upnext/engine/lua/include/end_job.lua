-- end_job: what every terminal path does besides removing the entry: outcome, waiters, idempotency key, location, dead letter.
-- Expects `keys` = {where, waiters, dead, dead_jobs, cancel, result, idem, reply} (the last three are prefixes) and `now`.
-- The caller has made sure of the keys' types (must_be): nothing here fails.
-- Of dead letters the newest MOST_DEAD are kept: a task that always fails must not fill the broker.
local MOST_DEAD = 100000
local function end_job(keys, now, job, outcome, ttl_ms, meta, dead_packed, moved)
  if ttl_ms > 0 then
    redis.call('SET', keys.result .. job, outcome, 'PX', ttl_ms)
  end
  if dead_packed then
    redis.call('HSET', keys.dead_jobs, job, dead_packed)
    redis.call('ZADD', keys.dead, string.format('%.0f', now), job)
    local over = redis.call('ZCARD', keys.dead) - MOST_DEAD
    if over > 0 then
      for _, oldest in ipairs(redis.call('ZRANGE', keys.dead, 0, math.min(over, 100) - 1)) do
        redis.call('ZREM', keys.dead, oldest)
        redis.call('HDEL', keys.dead_jobs, oldest)
      end
    end
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
  end
  if keys.have_cancels then
    redis.call('HDEL', keys.cancel, job)
  end
end

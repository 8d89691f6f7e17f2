-- delay_job: a job into the delayed set; -> its id without its task. Expects `keys` = {seq, delayed, delayed_jobs}; `now_us` and `due_us` are of the
-- server's clock. mend_seq: garbage in the counter of their ids is replaced by a number that is above all that were used.
local function mend_seq(keys)
  if not string.match(redis.call('GET', keys.seq) or '0', '^%d+$') then
    redis.call('SET', keys.seq, redis.call('TIME')[1])
  end
end
local function delay_job(keys, task, lane, meta, payload, due_us, now_us)
  local id = 'd' .. string.format('%.0f', math.floor(now_us / 1000)) .. '-' .. redis.call('INCR', keys.seq)
  local job = task .. ':' .. id
  redis.call('HSET', keys.delayed_jobs, job, lane .. #meta .. ':' .. meta .. payload)
  redis.call('ZADD', keys.delayed, string.format('%.0f', due_us), job)
  return id
end
-- expiring: the meta of a job with a `queue_ttl` (ms), which counts from when it is due.
local function expiring(meta, ttl, due_us, now_us)
  if not ttl then
    return meta
  end
  local read = meta == '' and {} or cjson.decode(meta)
  read.q = math.ceil(math.max(due_us or now_us, now_us) / 1000) + ttl
  return cjson.encode(read)
end

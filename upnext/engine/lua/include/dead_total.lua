-- dead_total: how large all dead letters are, with their notes. P:dead:bytes holds it as `COUNT BYTES`; where COUNT is not that of P:dead (another
-- version wrote or removed some) it is guessed from the oldest ones. Expects `keys` = {dead, dead_jobs, notes, dead_bytes}.
local function dead_size(keys, job)
  return #job + redis.call('HSTRLEN', keys.dead_jobs, job) + redis.call('HSTRLEN', keys.notes, job)
end
local function dead_total(keys)
  local count, stored = redis.call('ZCARD', keys.dead), redis.pcall('GET', keys.dead_bytes)
  local known, bytes = string.match(type(stored) == 'string' and stored or '', '^(%d+) (%d+)$')
  if tonumber(known) == count then
    return count, tonumber(bytes)
  end
  local oldest, sum = redis.call('ZRANGE', keys.dead, 0, 99), 0
  for _, job in ipairs(oldest) do
    sum = sum + dead_size(keys, job)
  end
  return count, math.ceil(sum / math.max(1, #oldest) * count)
end
local function keep_dead_total(keys, count, bytes)
  if count == 0 then
    redis.call('DEL', keys.dead_bytes)
    return
  end
  redis.call('SET', keys.dead_bytes, string.format('%.0f %.0f', count, math.max(0, bytes)))
end

-- lingering: how many permits of a task are held for what outlives its job.
local function lingering(key, task)
  local count = 0
  if redis.call('EXISTS', key) == 1 then
    local held = redis.call('HGETALL', key)
    for at = 1, #held, 2 do
      if string.sub(held[at], 1, #task + 1) == task .. '\n' then
        count = count + (tonumber(held[at + 1]) or 0)
      end
    end
  end
  return count
end

-- gcra: asks for permits of a rate limit; `upnext.core.limits.gcra` is the same in Python, and a test compares the two.
-- `limit` = {rate, period_s, burst or nil}. Times are us of the server's clock, all whole numbers below 2^53.
-- -> granted, the new theoretical arrival time, ms until one more is granted
local function gcra(tat, now, limit, want)
  local period = math.floor(limit.period_s * 1000000 + 0.5)
  local most = tonumber(limit.burst) or math.max(1, math.floor(limit.rate / 50))
  local steps = math.max(1, limit.rate - most + 1)
  local slack = math.min(10000, math.floor(math.floor(period / steps) / 20))
  local step
  if tonumber(limit.burst) then
    step = math.max(1, math.ceil(period / limit.rate))
  else
    step = math.max(1, math.ceil((period + slack) / steps))
  end
  local tolerance = (most - 1) * step
  if tat < now - slack then
    tat = now
  else
    tat = math.min(tat, now + most * step)
  end
  local free = math.floor((now + tolerance - tat) / step) + 1
  local granted = math.max(0, math.min(want, free))
  tat = tat + granted * step
  return granted, tat, math.ceil(math.max(0, tat - tolerance - now) / 1000)
end

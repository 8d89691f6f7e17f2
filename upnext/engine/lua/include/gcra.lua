-- gcra: asks for permits of a rate limit; `upnext.core.limits.gcra` is the same in Python, and a test compares the two.
-- Times are us of the server's clock, all whole numbers below 2^53. -> granted, the new theoretical arrival time, ms until one more is granted
local function gcra(tat, now, rate, period_s, want)
  local step = math.max(1, math.ceil(math.floor(period_s * 1000000 + 0.5) / rate))
  local most = math.max(1, math.floor(rate / 10))
  local tolerance = (most - 1) * step
  if tat < now - math.min(50000, math.floor(step / 2)) then
    tat = now
  else
    tat = math.min(tat, now + most * step)
  end
  local free = math.floor((now + tolerance - tat) / step) + 1
  local granted = math.max(0, math.min(want, free))
  tat = tat + granted * step
  return granted, tat, math.ceil(math.max(0, tat - tolerance - now) / 1000)
end

-- pass_over: from here on those of KEYS that hold another type are read as one that is never set. For scripts that only look: they go on beside a bad key.
local function pass_over(kind, ...)
  for _, at in ipairs({...}) do
    local found = KEYS[at] and redis.call('TYPE', KEYS[at]).ok
    if found and found ~= kind and found ~= 'none' then
      KEYS[at] = ABSENT
    end
  end
end

-- must_be: raises unless each of the keys holds this type or nothing. Called before the first write, so that no script ends half done.
local function must_be(kind, ...)
  for _, key in ipairs({...}) do
    local found = redis.call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then
      error({err = 'WRONGTYPE ' .. key .. ' holds a ' .. found .. ', not a ' .. kind})
    end
  end
end

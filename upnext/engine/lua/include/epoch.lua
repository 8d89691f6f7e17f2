do
  local named = redis.call('GET', KEYS[1])
  if named ~= ARGV[1] then
    if named and not string.find(named, '^[%w_.:-]+$') then
      return redis.error_reply('WRONGTYPE ' .. KEYS[1] .. ' is not the name of a data set')
    end
    return redis.error_reply('EPOCH another data set')
  end
end

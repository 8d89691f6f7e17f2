#!lua
-- Adds to how long attempts of tasks waited and ran.
-- KEYS: 1 times:, 2 times:
-- ARGV: for each of KEYS: 1 seconds that it is kept, 2 seconds that it is kept, 3... pairs: a task, its counts (`s12=3 r20=8`)
-- Returns: how many tasks
-- Errors: OOM
-- include: must_be
must_be('hash', KEYS[1], KEYS[2])
for number = 1, 2 do
  for at = 3, #ARGV, 2 do
    local counts = {}
    for _, text in ipairs({redis.call('HGET', KEYS[number], ARGV[at]) or '', ARGV[at + 1]}) do
      for bucket, count in string.gmatch(text, '([sr]%d+)=(%d+)') do
        counts[bucket] = (counts[bucket] or 0) + tonumber(count)
      end
    end
    local words = {}
    for bucket, count in pairs(counts) do
      words[#words + 1] = bucket .. '=' .. string.format('%.0f', count)
    end
    redis.call('HSET', KEYS[number], ARGV[at], table.concat(words, ' '))
  end
  redis.call('EXPIRE', KEYS[number], ARGV[number])
end
return (#ARGV - 2) / 2

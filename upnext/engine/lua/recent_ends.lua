#!lua flags=no-writes
-- The newest ends of jobs that are still remembered, newest first.
-- KEYS: 1 ends
-- ARGV: 1 result prefix, 2 task ('' any), 3 letters of the statuses wanted (d done, f failed, c cancelled, x dead), 4 most jobs
-- Returns: fours: job id, status letter, ms of the end, outcome or nil when it has expired
-- Errors: none
local limit = tonumber(ARGV[4])
local reply = {}
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], '+', '-')) do
  local ends = {}
  for letter, job in string.gmatch(entry[2][2], '(%l)([^\n]+)') do
    table.insert(ends, 1, {letter, job})
  end
  for _, ended in ipairs(ends) do
    local letter, job = ended[1], ended[2]
    if string.find(ARGV[3], letter, 1, true) and (ARGV[2] == '' or string.match(job, '^(.*):[^:]*$') == ARGV[2]) then
      if #reply / 4 >= limit then
        return reply
      end
      local size = #reply
      reply[size + 1], reply[size + 2], reply[size + 3] = job, letter, string.match(entry[1], '^%d+')
      reply[size + 4] = redis.call('GET', ARGV[1] .. job)
    end
  end
end
return reply

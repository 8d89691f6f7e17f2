#!lua flags=no-writes
-- The newest ends of jobs that are still remembered, newest first.
-- KEYS: 1 ends
-- ARGV: 1 result prefix, 2 task ('' any), 3 letters of the statuses wanted (d done, f failed, c cancelled, x dead), 4 most jobs, 5 most bytes read,
--       6 entry to go on with ('+': the newest), 7 how many of its ends have been looked at
-- Returns: {entry to go on with ('': that was the last), how many of its ends have been looked at, then fours: job id, status letter, ms of the end,
--           outcome or nil when it has expired}
-- Errors: none
-- include: pass_over
pass_over('stream', 1)
local limit, left = tonumber(ARGV[4]), tonumber(ARGV[5])
local reply = {'', 0}
local passed = tonumber(ARGV[7])
local entries = redis.call('XREVRANGE', KEYS[1], ARGV[6], '-', 'COUNT', 33)
for number, entry in ipairs(entries) do
  if number == 33 then
    reply[1], reply[2] = entry[1], 0
    return reply
  end
  local ends = {}
  for letter, job in string.gmatch(entry[2][2], '(%l)([^\n]+)') do
    ends[#ends + 1] = {letter, job}
  end
  for at = #ends - passed, 1, -1 do
    local letter, job = ends[at][1], ends[at][2]
    if string.find(ARGV[3], letter, 1, true) and (ARGV[2] == '' or string.match(job, '^(.*):[^:]*$') == ARGV[2]) then
      if (#reply - 2) / 4 >= limit or left <= 0 then
        reply[1], reply[2] = entry[1], #ends - at
        return reply
      end
      local outcome = redis.pcall('GET', ARGV[1] .. job)
      outcome = type(outcome) == 'string' and outcome or false
      left = left - #(outcome or '')
      local size = #reply
      reply[size + 1], reply[size + 2], reply[size + 3], reply[size + 4] = job, letter, string.match(entry[1], '^%d+'), outcome
    end
  end
  passed = 0
end
return reply

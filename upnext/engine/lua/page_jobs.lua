#!lua flags=no-writes
-- One page of the delayed set (soonest first) or of the dead letters (newest first).
-- KEYS: 1 delayed or dead, 2 its jobs
-- ARGV: 1 task ('' any), 2 rank to begin at, 3 most jobs looked at, 4 most jobs returned, 5 most bytes read, 6 '1': from the highest score down, 7 group of dead letters ('': any; '-': none)
-- Returns: {rank to go on at (-1: that was the last), then triples: job id, score, packed job without its payload or nil}
-- Errors: none
-- include: pass_over
pass_over('zset', 1)
pass_over('hash', 2)
local first = tonumber(ARGV[2])
local page
if ARGV[6] == '1' then
  page = redis.call('ZREVRANGE', KEYS[1], first, first + ARGV[3] - 1, 'WITHSCORES')
else
  page = redis.call('ZRANGE', KEYS[1], first, first + ARGV[3] - 1, 'WITHSCORES')
end
local function in_group(job)
  if ARGV[7] == '' then
    return true
  end
  local packed = redis.call('HGET', KEYS[2], job) or ''
  local size, start = string.match(packed, '^%l(%d+):()')
  local meta = start and string.sub(packed, start, start - 1 + tonumber(size)) or ''
  return (string.match(meta, '"g":"(%x+)"') or '-') == ARGV[7]
end
local limit, left = tonumber(ARGV[4]), tonumber(ARGV[5])
local reply = {#page / 2 < tonumber(ARGV[3]) and -1 or first + #page / 2}
for at = 1, #page, 2 do
  local job = page[at]
  if (ARGV[1] == '' or string.match(job, '^(.*):[^:]*$') == ARGV[1]) and in_group(job) then
    if limit == 0 or left <= 0 then
      reply[1] = first + (at - 1) / 2
      return reply
    end
    limit = limit - 1
    local packed = redis.call('HGET', KEYS[2], job)
    left = left - #(packed or '')
    local size, start = string.match(packed or '', '^%l(%d+):()')
    local last = #reply
    reply[last + 1], reply[last + 2] = job, page[at + 1]
    reply[last + 3] = start and string.sub(packed, 1, start - 1 + tonumber(size)) or false
  end
end
return reply

#!lua flags=allow-oom
-- Gives up fetched, unstarted jobs: each becomes a new entry in lane `back` of its task. Fenced by the entry id.
-- KEYS: 1 epoch, 2 where, 3... for each (task, lane) two: the stream, the task's back stream
-- ARGV: 1 epoch, 2 bell channel, then for each pair of KEYS: its task; then for each job two: index of its pair from 1, entry id
-- Returns: the number of jobs handed back (others were not ours any more)
-- Errors: EPOCH
-- include: epoch
local pairs_count = (#KEYS - 2) / 2
local count = 0
for at = 3 + pairs_count, #ARGV, 2 do
  local index, entry = tonumber(ARGV[at]), ARGV[at + 1]
  local stream, back, task = KEYS[1 + 2 * index], KEYS[2 + 2 * index], ARGV[2 + index]
  if redis.call('XACK', stream, 'w', entry) == 1 then
    local found = redis.call('XRANGE', stream, entry, entry)
    if found[1] then
      local fields = found[1][2]
      local lane = string.sub(stream, -1)
      local meta = fields[4] and cjson.decode(fields[4]) or {}
      meta.i = meta.i or (task .. ':' .. lane .. entry)
      meta.l = meta.l or lane
      meta.b = 1
      local new = redis.call('XADD', back, '*', 'p1', fields[2], 'm', cjson.encode(meta))
      redis.call('HSET', KEYS[2], meta.i, 'b ' .. new)
      redis.call('XDEL', stream, entry)
      count = count + 1
    end
  end
end
if count > 0 then
  redis.call('PUBLISH', ARGV[2], 'b')
end
return count

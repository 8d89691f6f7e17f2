#!lua flags=no-writes
-- A part of a stream: what its entries say besides their payloads.
-- KEYS: 1 the stream to look at
-- ARGV: 1 entry id to go on after ('': from the first), 2 most entries, 3 most bytes read, 4 most bytes of a value
-- Returns: {type found, entry id to go on after ('': that was the last), then fours: entry id, its first field, the value of that where it is no
--           payload, the value of the second field or nil}; nothing but the type when that is another one
-- Errors: none
-- include: walk
local found = redis.call('TYPE', KEYS[1]).ok
if found ~= 'stream' then
  return {found}
end
local reply, last, most = {found, ''}, ARGV[1], tonumber(ARGV[4])
local _, more = walk(KEYS[1], last == '' and '-' or '(' .. last, '+', tonumber(ARGV[2]), tonumber(ARGV[3]), false, function(id, fields)
  local size = #reply
  last = id
  reply[size + 1], reply[size + 2] = id, string.sub(fields[1], 1, most)
  reply[size + 3] = string.find(fields[1], '^p%d+$') and '' or string.sub(fields[2], 1, most)
  reply[size + 4] = fields[4] and string.sub(fields[4], 1, most) or false
end)
reply[2] = more and last or ''
return reply

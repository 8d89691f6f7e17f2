#!lua flags=allow-oom
-- Moves suspects of a crash whose culprit is known from lane suspect to lane back, uncharged. Who has been fetched is left to its holder.
-- KEYS: 1 epoch, 2 where, 3 lane suspect of a task, 4 its lane back
-- ARGV: 1 epoch, 2 name of the crash, 3 entry id after which to look ('' at first), 4 most entries to look at, 5 most bytes of them, 6 bell channel
-- Returns: {entries moved, entry id after which to go on ('' when all were looked at)}
-- Errors: EPOCH
-- include: epoch
-- include: must_be
must_be('hash', KEYS[2])
must_be('stream', KEYS[3], KEYS[4])
-- include: read_meta
-- include: last_fetched
local crash, after, most, most_bytes = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
if after == '' then
  after = last_fetched(KEYS[3])
end
local moved, bytes, looked = 0, 0, 0
while looked < most and bytes < most_bytes do
  local found = redis.call('XRANGE', KEYS[3], '(' .. after, '+', 'COUNT', 1)[1]
  if not found then
    after = ''
    break
  end
  local entry, fields = found[1], found[2]
  local meta = read_meta(fields)
  looked = looked + 1
  bytes = bytes + #(fields[2] or '')
  after = entry
  if meta and meta.i and meta.d == crash then
    meta.s, meta.d = nil, nil
    if not meta.c then
      meta.x = nil
    end
    local new = redis.call('XADD', KEYS[4], '*', fields[1], fields[2], 'm', cjson.encode(meta))
    redis.call('HSET', KEYS[2], meta.i, 'b ' .. new)
    redis.call('XDEL', KEYS[3], entry)
    moved = moved + 1
  end
end
if moved > 0 then
  redis.call('SPUBLISH', ARGV[6], 'b')
end
return {moved, after}

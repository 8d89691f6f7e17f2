-- flow: the jobs below a root in P:f:ROOT, child -> `LETTER MS PARENT`: o not ended, else the letter of its end; MS of its submit or end. Expects `keys` =
-- {flow}, a prefix. Of MOST_CHILDREN, those that ended first among some make room for more; where none has ended, what comes is not noted. A flow is kept for
-- FLOW_S after its last change. Nothing here fails: a key of another type is left.
local MOST_CHILDREN, LOOKED_AT, FLOW_S = 10000, 200, 86400
local flows_kept = {}
local function make_room(keys, root)
  local page = redis.pcall('HSCAN', keys.flow .. root, '0', 'COUNT', LOOKED_AT)
  local ended = {}
  for at = 1, page.err and 0 or #page[2], 2 do
    local letter, ms = string.match(page[2][at + 1], '^(%l) (%d+) ')
    if letter and letter ~= 'o' then
      ended[#ended + 1] = {tonumber(ms), page[2][at]}
    end
  end
  table.sort(ended, function(one, other)
    return one[1] < other[1]
  end)
  for at = 1, math.ceil(#ended / 2) do
    redis.pcall('HDEL', keys.flow .. root, ended[at][2])
  end
  return #ended > 0
end
local function note_child(keys, now, letter, job, meta)
  if type(meta.r) ~= 'string' or type(meta.p) ~= 'string' then
    return
  end
  local count = redis.pcall('HLEN', keys.flow .. meta.r)
  if type(count) ~= 'number' then
    return
  end
  if count >= MOST_CHILDREN and redis.pcall('HEXISTS', keys.flow .. meta.r, job) == 0 and not make_room(keys, meta.r) then
    return
  end
  redis.pcall('HSET', keys.flow .. meta.r, job, string.format('%s %.0f %s', letter, now, meta.p))
  if not flows_kept[meta.r] then
    flows_kept[meta.r] = true
    redis.pcall('EXPIRE', keys.flow .. meta.r, FLOW_S)
  end
end

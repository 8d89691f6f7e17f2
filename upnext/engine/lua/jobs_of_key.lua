#!lua flags=no-writes
-- Which jobs hold an idempotency key, or held it until they ended: of one task, or of a page of the registered ones.
-- KEYS: 1 tasks
-- ARGV: 1 idempotency prefix, 2 prefix of the keys of ended jobs, 3 key, 4 task ('': any), 5 cursor, 6 about how many tasks
-- Returns: {next cursor ('0' at the end), then for each job two: its task, its id}
-- Errors: none
local key = ARGV[3]
local function held(name)
  for prefix = 1, 2 do -- the one that holds it now comes before the one that has ended
    local found = redis.pcall('GET', ARGV[prefix] .. name)
    if type(found) == 'string' then
      return string.match(found, '^%S+')
    end
  end
end
local reply, names = {'0'}, {ARGV[4]}
if ARGV[4] == '' then
  local scanned = redis.call('HSCAN', KEYS[1], ARGV[5], 'COUNT', ARGV[6])
  reply[1], names = scanned[1], {}
  for at = 1, #scanned[2], 2 do
    names[#names + 1] = scanned[2][at]
  end
end
for _, task in ipairs(names) do
  local job = held(task .. ':' .. key) or held(key .. '@' .. task)
  if job then
    reply[#reply + 1] = task
    reply[#reply + 1] = job
  end
end
return reply

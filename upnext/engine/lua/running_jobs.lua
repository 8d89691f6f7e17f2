#!lua flags=no-writes
-- Jobs of one lane that consumers hold.
-- KEYS: 1 the lane's stream, 2 consumers
-- ARGV: 1 entry id to go on after ('': from the first), 2 most jobs, 3 most bytes read
-- Returns: {server ms, entry id to go on after ('': that was the last), then fives: entry id, meta or nil, consumer, ms since it was fetched,
--           the consumer's record: nil where it is not registered, '' after its first job}
-- Errors: none
-- include: pass_over
pass_over('stream', 1)
pass_over('hash', 2)
local time = redis.call('TIME')
local reply = {time[1] * 1000 + math.floor(time[2] / 1000), ''}
local most, left = tonumber(ARGV[2]), tonumber(ARGV[3])
local sent = {}
local pending = redis.pcall('XPENDING', KEYS[1], 'w', ARGV[1] ~= '' and '(' .. ARGV[1] or '-', '+', most)
for at, held in ipairs(pending.err and {} or pending) do
  local entry = redis.call('XRANGE', KEYS[1], held[1], held[1])[1]
  if entry then
    local size = #reply
    reply[size + 1], reply[size + 2], reply[size + 3], reply[size + 4] = held[1], entry[2][4] or false, held[2], held[3]
    local record = sent[held[2]] and '' or redis.call('HGET', KEYS[2], held[2])
    reply[size + 5], sent[held[2]] = record, true
    left = left - #(entry[2][2] or '') - #(record or '')
  end
  if left <= 0 or at == most then
    reply[2] = held[1]
    break
  end
end
return reply

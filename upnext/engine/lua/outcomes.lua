#!lua flags=no-writes
-- Outcomes of jobs that have ended, as far as they are kept.
-- KEYS: 1... results
-- ARGV: 1 most bytes read
-- Returns: for each of the keys its outcome or nil; of the first ones only, where they hold more: at least one
-- Errors: none
-- include: pass_over
for at = 1, #KEYS do
  pass_over('string', at)
end
local reply, left = {}, tonumber(ARGV[1])
for at = 1, #KEYS do
  if left <= 0 then
    break
  end
  local outcome = redis.call('GET', KEYS[at])
  left = left - #(outcome or '')
  reply[at] = outcome
end
return reply

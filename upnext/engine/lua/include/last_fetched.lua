-- last_fetched: the newest entry id that the group has fetched from a lane; what is above it waits.
local function last_fetched(stream)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  for _, group in ipairs(groups.err and {} or groups) do
    for at = 1, #group, 2 do
      if group[at] == 'last-delivered-id' then
        return group[at + 1]
      end
    end
  end
  return '0-0'
end

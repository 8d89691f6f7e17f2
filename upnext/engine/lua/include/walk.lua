-- walk: the entries of a stream between two ids, in steps so small that even the fattest hold little; it ends after `most` entries or `most_bytes`.
-- Calls visit(id, fields) for each; -> how many, and whether it ended before the range did. `back`: from the last to the first.
local function walk(stream, from, to, most, most_bytes, back, visit)
  local count, bytes = 0, 0
  while count < most and bytes < most_bytes do
    local entries
    if back then
      entries = redis.call('XREVRANGE', stream, to, from, 'COUNT', math.min(3, most - count))
    else
      entries = redis.call('XRANGE', stream, from, to, 'COUNT', math.min(3, most - count))
    end
    for _, entry in ipairs(entries) do
      count = count + 1
      for _, field in ipairs(entry[2]) do
        bytes = bytes + #field
      end
      visit(entry[1], entry[2])
    end
    if #entries == 0 then
      return count, false
    end
    if back then
      to = '(' .. entries[#entries][1]
    else
      from = '(' .. entries[#entries][1]
    end
  end
  return count, true
end

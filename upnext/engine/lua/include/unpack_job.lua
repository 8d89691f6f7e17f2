-- unpack_job: a packed job's lane letter, meta and payload; nil when it can't be read.
local function unpack_job(packed)
  local lane, size, start = string.match(packed or '', '^([nh])(%d+):()')
  size = tonumber(size)
  if not size or #packed - start + 1 < size then
    return nil
  end
  local known, meta = pcall(cjson.decode, size > 0 and string.sub(packed, start, start + size - 1) or '{}')
  if not known or type(meta) ~= 'table' or meta[1] ~= nil then
    return nil
  end
  for _, letter in ipairs({'i', 'l', 'k', 'w'}) do
    if meta[letter] ~= nil and type(meta[letter]) ~= 'string' then
      return nil
    end
  end
  return lane, meta, string.sub(packed, start + size)
end

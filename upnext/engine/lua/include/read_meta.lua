-- read_meta: what an entry says besides its payload, {} when nothing; nil for one that can't be read, which is to be moved as it is.
-- A newer schema's entry is read as far as we understand it; its payload's field keeps its name.
local function read_meta(fields)
  if not string.find(fields[1] or '', '^p%d+$') or (fields[3] and fields[3] ~= 'm') then
    return nil
  end
  local known, meta = pcall(cjson.decode, fields[4] or '{}')
  if not known or type(meta) ~= 'table' or meta[1] ~= nil then
    return nil
  end
  for _, letter in ipairs({'i', 'l', 'k', 'w'}) do
    if meta[letter] ~= nil and type(meta[letter]) ~= 'string' then
      return nil
    end
  end
  return meta
end

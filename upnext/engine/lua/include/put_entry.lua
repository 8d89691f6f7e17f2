-- put_entry: adds a stream entry; -> its id, or nil and why the stream takes none (its ids are used up).
local function put_entry(stream, fields)
  local took, id = pcall(function()
    return redis.call('XADD', stream, '*', unpack(fields))
  end)
  if took then
    return id
  end
  return nil, type(id) == 'table' and id.err or tostring(id)
end

-- large: whether a job is to be noted in P:large as its task's largest; `upnext.core.batches.LARGE_BYTES` is the same.
local LARGE_BYTES = 4096
local function is_largest(key, task, bytes)
  return bytes > LARGE_BYTES and bytes > (tonumber(redis.call('HGET', key, task)) or 0)
end

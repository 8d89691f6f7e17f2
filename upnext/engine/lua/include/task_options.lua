-- task_options: what a task's definition says about its jobs; {} when there is none, or one that can't be read.
local function task_options(tasks, task)
  local definition = redis.call('HGET', tasks, task)
  local known, row = pcall(cjson.decode, definition or '{}')
  return known and type(row) == 'table' and type(row.options) == 'table' and row.options or {}
end

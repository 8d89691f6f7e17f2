-- task_options: what a task's definition says about its jobs; {} when there is none, or one that can't be read.
local function task_options(tasks, task)
  local definition = redis.call('HGET', tasks, task)
  local known, said = pcall(cjson.decode, definition or '{}')
  return known and type(said) == 'table' and type(said.options) == 'table' and said.options or {}
end

-- ends: ends that are no success are counted by task and group (see `upnext.core.end_groups`), with the newest ids of each. A script notes each end
-- and keeps them all in its last step. Expects `keys` = {groups, group_ids}. Of a task MOST_GROUPS, of all MOST_OF_ALL; one that was quiet for QUIET_MS
-- makes room, else the task's group `~` takes what is new: a flood of new errors pushes nothing out. Nothing here fails: a row of another type is left.
local MOST_GROUPS, MOST_OF_ALL, MOST_IDS, QUIET_MS = 32, 2000, 100, 3600000
local noted = {}
local function note_end(task, letter, job, group, about)
  local field = task .. '\n' .. group
  local one = noted[field]
  if not one then
    one = {task = task, letter = letter, group = group, about = about, count = 0, ids = {}}
    noted[field] = one
  end
  one.ids[one.count % MOST_IDS + 1] = job
  one.count = one.count + 1
end
local function group_name(kind, cause)
  return string.sub(redis.sha1hex(kind .. '\n\n' .. (cause or '')), 1, 12)
end
local function note_cancelled(task, job, cause)
  note_end(task, 'c', job, group_name('Cancelled', cause), cjson.encode({t = 'Cancelled', x = cause}))
end
local function text_at(key, field)
  local found = redis.pcall('HGET', key, field)
  return type(found) == 'string' and found or ''
end
-- Where the ends are counted: their own group, one that takes the place of a quiet one, or `~`.
local function room_for(keys, task, group, now)
  if redis.pcall('HEXISTS', keys.groups, task .. '\n' .. group) == 1 then
    return group
  end
  local list, count, oldest, oldest_ms = text_at(keys.groups, task), 0, nil, nil
  for name in string.gmatch(list, '%S+') do
    local last = tonumber(string.match(text_at(keys.groups, task .. '\n' .. name), '^%d+ %d+ (%d+) ')) or 0
    count = count + 1
    if name ~= '~' and (not oldest or last < oldest_ms) then
      oldest, oldest_ms = name, last
    end
  end
  local all = redis.pcall('HLEN', keys.groups)
  if count >= MOST_GROUPS or (count > 0 and type(all) == 'number' and all >= MOST_OF_ALL) then
    if not oldest or oldest_ms > now - QUIET_MS then
      group = '~'
      if redis.pcall('HEXISTS', keys.groups, task .. '\n~') == 1 then
        return group
      end
    else
      redis.pcall('HDEL', keys.groups, task .. '\n' .. oldest)
      redis.pcall('HDEL', keys.group_ids, task .. '\n' .. oldest)
      list = string.gsub(' ' .. list .. ' ', ' ' .. oldest .. ' ', ' ')
    end
  end
  redis.pcall('HSET', keys.groups, task, string.match(list .. ' ' .. group, '^%s*(.*)$'))
  return group
end
local function keep_ends(keys, now)
  local stamp = string.format('%.0f', now)
  for _, one in pairs(noted) do
    local group = room_for(keys, one.task, one.group, now)
    local field = one.task .. '\n' .. group
    local row = text_at(keys.groups, field)
    local count, first, letter, about = string.match(row, '^(%d+) (%d+) %d+ (%l) (.*)$')
    if not count then
      count, first, letter, about = 0, stamp, one.letter, group == '~' and '{}' or one.about
    end
    redis.pcall('HSET', keys.groups, field, string.format('%.0f %s %s %s ', count + one.count, first, stamp, letter) .. about)
    local lines = {text_at(keys.group_ids, field)}
    if lines[1] == '' then
      lines = {}
    end
    local size = #one.ids
    for at = 1, size do
      local oldest = one.count > MOST_IDS and one.count % MOST_IDS or 0
      lines[#lines + 1] = stamp .. ' ' .. one.ids[(oldest + at - 1) % size + 1]
    end
    local text = table.concat(lines, '\n')
    local _, breaks = string.gsub(text, '\n', '\n')
    if breaks >= MOST_IDS then
      local kept, drop = {}, breaks + 1 - MOST_IDS
      for line in string.gmatch(text, '[^\n]+') do
        drop = drop - 1
        if drop < 0 then
          kept[#kept + 1] = line
        end
      end
      text = table.concat(kept, '\n')
    end
    redis.pcall('HSET', keys.group_ids, field, text)
  end
end

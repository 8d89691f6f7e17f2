-- end_cancelled: a job ends as cancelled instead of running (again). Expects end_job, ends, flow, task_options, and `keys` as there with {stats, tasks} besides.
-- `worker` and `cause`: of the crash in which it was found, else nil. `message`: nil for the usual one.
local function end_cancelled(keys, now, task, job, meta, moved, worker, cause, message)
  local options = task_options(keys.tasks, task)
  local own = type(meta.u) == 'table' and meta.u or {}
  local outcome = cjson.encode({
    s = 'cancelled', a = meta.a, c = meta.c, f = now, w = worker, p = meta.p, r = meta.r, y = 'cancelled', x = cause,
    l = own.labels, o = own.via,
    e = {type = 'Cancelled', message = message or (worker and 'cancelled' or 'cancelled before it ran'), traceback = ''},
  })
  end_job(keys, now, job, outcome, math.floor((tonumber(own.result_ttl_s) or tonumber(options.result_ttl_s) or 600) * 1000), meta, nil, moved)
  redis.pcall('HINCRBY', keys.stats, task .. ':cancelled', 1)
  note_cancelled(task, job, cause)
  note_child(keys, now, 'c', job, meta)
end

-- id, latest end in ms or '', '1' when its run folder goes too: remove a job that has ended
local id, latest = ARGV[1], ARGV[2]
local job = redis.call('HMGET', key_of(id), 'state', 'finished_at')
if not job[1] and redis.call('EXISTS', key_of(id)) == 0 then
  forget(id)
  return { 'MISSING' }
end
if job[1] and not TERMINAL[job[1]] and not job[2] then return { 'ACTIVE', job[1] } end
if latest ~= '' and (tonumber(job[2]) or 0) > tonumber(latest) then return { 'KEPT' } end
if job[1] then redis.call('ZREM', P .. 'in:' .. job[1], id) end
forget(id)
if ARGV[3] == '1' then redis.call('SADD', P .. 'folders', id) end
return { 'OK' }

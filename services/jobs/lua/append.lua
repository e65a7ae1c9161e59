-- id, epoch, event as JSON, what it is (progress, step, event), completed step or ''
even_when_full()
local id = ARGV[1]
local refused = refusal(id, ARGV[2])
if refused then return refused end
if ARGV[4] == 'progress' then
  redis.call('HSET', key_of(id), 'progress', ARGV[3])
  tell(id, '', ARGV[3])
  return { 'OK', '' }
end
if ARGV[4] ~= 'step' then return { 'OK', add_event(id, ARGV[3], now_ms()) } end
redis.call('HSET', key_of(id), 'step', ARGV[5])
return { 'OK', add_step(id, ARGV[3], now_ms()) }

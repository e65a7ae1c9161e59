-- id, epoch
even_when_full()
local refused = refusal(ARGV[1], ARGV[2])
if refused then return refused end
if redis.call('HGET', key_of(ARGV[1]), 'state') == 'starting' then move(ARGV[1], 'running', '', '', now_ms()) end
return { 'OK' }

-- id, epoch, lease ms
even_when_full()
local refused = refusal(ARGV[1], ARGV[2])
if refused then return refused end
redis.call('ZADD', P .. 'leases', ms(now_ms() + tonumber(ARGV[3])), ARGV[1])
if redis.call('HGET', key_of(ARGV[1]), 'state') == 'cancelling' then return { 'CANCEL' } end
return { 'OK' }

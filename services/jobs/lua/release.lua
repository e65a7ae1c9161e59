-- id, epoch, delay ms, message: back in line in the old place, at once or after a while
even_when_full()
local refused = refusal(ARGV[1], ARGV[2])
if refused then return refused end
local id, now, delay = ARGV[1], now_ms(), tonumber(ARGV[3])
if redis.call('HGET', key_of(id), 'state') == 'cancelling' then
  move(id, 'cancelled', 'cancelled', '', now)
elseif delay > 0 then
  redis.call('ZADD', P .. 'delayed', ms(now + delay), id)
  move(id, 'queued', 'drained', ARGV[4], now)
  redis.call('HSET', key_of(id), 'waiting', ARGV[4])
else
  redis.call('ZADD', P .. 'ready', place(id), id)
  move(id, 'queued', 'drained', ARGV[4], now)
end
return reply('OK', id)

-- what those first in line wait for, "" when for nothing but their turn
even_when_full()
for _, id in ipairs(redis.call('ZRANGE', P .. 'ready', 0, 99)) do
  local key = key_of(id)
  if redis.call('HGET', key, 'state') == 'queued' then
    if ARGV[1] == '' then redis.call('HDEL', key, 'waiting') else redis.call('HSET', key, 'waiting', ARGV[1]) end
  end
end
return { 'OK' }

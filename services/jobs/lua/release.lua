-- id, epoch: back in line at once, in the old place
local refused = refusal(ARGV[1], ARGV[2])
if refused then return refused end
local id, key = ARGV[1], key_of(ARGV[1])
if redis.call('HGET', key, 'state') == 'cancelling' then
  move(id, 'cancelled', 'cancelled', '', now_ms())
else
  redis.call('ZADD', P .. 'ready', redis.call('HGET', key, 'sequence'), id)
  move(id, 'queued', 'drained', 'the runner was stopped', now_ms())
end
return reply('OK', id)

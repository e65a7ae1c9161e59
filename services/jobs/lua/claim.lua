-- owner, lease ms, backoff ms: take back expired leases, promote what waited long enough, lease the oldest ready job
local now = now_ms()
local expired = redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', ms(now), 'LIMIT', 0, 100)
local lost = {}
for _, id in ipairs(expired) do
  lose(id, 'lease_lost', 'the owner stopped reporting', tonumber(ARGV[3]), now)
  lost[#lost + 1] = redis.call('HGETALL', key_of(id))
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'delayed', '-inf', ms(now), 'LIMIT', 0, 100)) do
  redis.call('ZREM', P .. 'delayed', id)
  redis.call('ZADD', P .. 'ready', redis.call('HGET', key_of(id), 'sequence'), id)
end
local next = redis.call('ZPOPMIN', P .. 'ready')
if not next[1] then return { 'NONE', {}, lost } end
local id = next[1]
redis.call('HINCRBY', key_of(id), 'epoch', 1)
redis.call('HSET', key_of(id), 'owner', ARGV[1])
redis.call('HSETNX', key_of(id), 'started_at', ms(now))
redis.call('ZADD', P .. 'leases', ms(now + tonumber(ARGV[2])), id)
move(id, 'starting', '', '', now)
return { 'CLAIMED', redis.call('HGETALL', key_of(id)), lost }

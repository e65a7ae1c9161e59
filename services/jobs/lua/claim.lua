-- owner, lease ms, backoff ms: take back expired leases, promote what waited long enough, lease the oldest ready job
even_when_full()
local now, queued = now_ms(), { queued = true }
local lost, gone = {}, {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', ms(now), 'LIMIT', 0, 100)) do
  if belongs(id, 'leases', ACTIVE, gone) then
    lose(id, 'lease_lost', 'the owner stopped reporting', tonumber(ARGV[3]), now)
    lost[#lost + 1] = redis.call('HGETALL', key_of(id))
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'delayed', '-inf', ms(now), 'LIMIT', 0, 100)) do
  if belongs(id, 'delayed', queued, gone) then
    redis.call('ZREM', P .. 'delayed', id)
    redis.call('ZADD', P .. 'ready', place(id), id)
  end
end
local skipped = 0
while true do
  local id = redis.call('ZRANGE', P .. 'ready', skipped, skipped)[1]
  if not id then return { 'NONE', {}, lost, gone } end
  if belongs(id, 'ready', queued, gone) then
    local key = key_of(id)
    redis.call('ZREM', P .. 'ready', id)
    redis.call('HSET', key, 'owner', ARGV[1], 'epoch', (tonumber(redis.call('HGET', key, 'epoch')) or 0) + 1)
    redis.call('HSETNX', key, 'started_at', ms(now))
    redis.call('ZADD', P .. 'leases', ms(now + tonumber(ARGV[2])), id)
    move(id, 'starting', '', '', now)
    return { 'CLAIMED', redis.call('HGETALL', key), lost, gone }
  end
  if redis.call('ZSCORE', P .. 'ready', id) then skipped = skipped + 1 end
end

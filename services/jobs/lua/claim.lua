-- owner, lease ms, backoff ms: take back expired leases, promote what waited long enough, lease the oldest ready job
even_when_full()
local now, queued = now_ms(), { queued = true }
local lost, gone = {}, {}

local function count(states)
  local found = 0
  for state, _ in pairs(states) do found = found + redis.call('ZCARD', P .. 'in:' .. state) end
  return found
end

-- Whoever is in a set of `states` and in neither index goes into the first. An index may have lost everything (an
-- operator's DEL, an evicted key); without it a job would wait, or run without an owner, for ever.
local function restore(states, index, other, score)
  if count(states) <= redis.call('ZCARD', P .. index) + redis.call('ZCARD', P .. other) then return end
  for listed, _ in pairs(states) do
    for _, id in ipairs(redis.call('ZRANGE', P .. 'in:' .. listed, 0, -1)) do
      if not (redis.call('ZSCORE', P .. index, id) or redis.call('ZSCORE', P .. other, id)) then
        local state = redis.pcall('HGET', key_of(id), 'state')
        if type(state) ~= 'string' then
          forget(id)
          gone[#gone + 1] = id
        elseif NEXT[state] and not states[state] then
          redis.call('ZREM', P .. 'in:' .. listed, id)
          redis.call('ZADD', P .. 'in:' .. state, 0, id)
        else
          redis.call('ZADD', P .. index, score(id), id)
        end
      end
    end
  end
end

restore(queued, 'ready', 'delayed', place)
restore(ACTIVE, 'leases', 'nothing', function() return ms(now + tonumber(ARGV[2])) end)
if redis.call('ZCARD', P .. 'all') < count(NEXT) then
  for state, _ in pairs(NEXT) do
    redis.call('ZUNIONSTORE', P .. 'all', 2, P .. 'all', P .. 'in:' .. state)
  end
end
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
  if not id then return { 'NONE', {}, lost, gone, '' } end
  if belongs(id, 'ready', queued, gone) then
    local key = key_of(id)
    redis.call('ZREM', P .. 'ready', id)
    redis.call('HSET', key, 'owner', ARGV[1], 'epoch', (tonumber(redis.call('HGET', key, 'epoch')) or 0) + 1)
    redis.call('HSETNX', key, 'started_at', ms(now))
    redis.call('ZADD', P .. 'leases', ms(now + tonumber(ARGV[2])), id)
    local event_id = move(id, 'starting', '', '', now)
    return { 'CLAIMED', redis.call('HGETALL', key), lost, gone, event_id }
  end
  if redis.call('ZSCORE', P .. 'ready', id) then skipped = skipped + 1 end
end

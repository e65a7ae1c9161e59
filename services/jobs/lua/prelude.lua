-- Shared by every script. KEYS[1] is the key prefix; it holds one hash tag, so all keys live in one cluster slot.
-- NEXT (the transition table), TERMINAL, ACTIVE, STEPS_KEPT and FEED_KEPT are written above this text from Python.
--   job:<id>      HASH    the job
--   job:<id>:ev   STREAM  its history but for steps, whole     job:<id>:st  STREAM  its newest steps
--   all, in:<state>  ZSET  ids at score 0, so that they list in id (= creation) order
--   ready ZSET by sequence    delayed ZSET by time    leases ZSET by expiry    idem:<digest> HASH
--   feed STREAM  events of all jobs, bounded, numbered by feed-count    folders SET  ids whose run folder has to go
-- An id in one of the sets may have lost its hash (an operator's DEL): it is forgotten where it is met. `claim` puts back
-- what `all`, `ready`, `delayed` and `leases` lost. A job in a state that the table lacks is another release's: it is
-- left as it is.
local P = KEYS[1]

local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function key_of(id) return P .. 'job:' .. id end

local function ms(value) return string.format('%d', value) end

-- An id for the next event: greater than every one in both streams of the job, whoever wrote them.
local function next_id(id, now)
  local at, sequence = now, 0
  for _, name in ipairs({ ':ev', ':st' }) do
    local last = redis.call('XREVRANGE', key_of(id) .. name, '+', '-', 'COUNT', 1)[1]
    if last then
      local of, number = string.match(last[1], '^(%d+)-(%d+)$')
      of, number = tonumber(of), tonumber(number)
      if of > at or (of == at and number >= sequence) then at, sequence = of, number + 1 end
    end
  end
  return string.format('%d-%d', at, sequence)
end

local function tell(id, event_id, json)
  redis.call('XADD', P .. 'feed', 'MAXLEN', '~', FEED_KEPT, '*',
    'number', redis.call('INCR', P .. 'feed-count'), 'job', id, 'event', event_id, 'json', json)
end

local function add_event(id, json, now)
  local event_id = next_id(id, now)
  redis.call('XADD', key_of(id) .. ':ev', event_id, 'json', json)
  tell(id, event_id, json)
  return event_id
end

-- Steps have a stream of their own: dropping the oldest then frees memory and touches nothing else.
local function add_step(id, json, now)
  local stream, event_id = key_of(id) .. ':st', next_id(id, now)
  if redis.call('XLEN', stream) >= STEPS_KEPT then
    local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1]
    redis.call('XDEL', stream, oldest)
    redis.call('HSET', key_of(id), 'dropped_to', oldest)
    redis.call('HINCRBY', key_of(id), 'dropped', 1)
  end
  redis.call('XADD', stream, event_id, 'json', json)
  tell(id, event_id, json)
  return event_id
end

local function note(id, now)
  local job = redis.call('HMGET', key_of(id), 'state', 'reason', 'epoch')
  return add_event(id, cjson.encode({
    type = 'state', at = now / 1000, state = job[1], reason = job[2], attempt = tonumber(job[3])
  }), now)
end

local function reply(word, id)
  return { word, redis.call('HGETALL', key_of(id)) }
end

-- Remove a job's id and history from everywhere, and its hash if it is still there.
local function forget(id)
  for state, _ in pairs(NEXT) do redis.call('ZREM', P .. 'in:' .. state, id) end
  for _, index in ipairs({ 'all', 'ready', 'delayed', 'leases' }) do redis.call('ZREM', P .. index, id) end
  redis.call('DEL', key_of(id), key_of(id) .. ':ev', key_of(id) .. ':st')
end

-- What to do with an id met in `ready`, `delayed` or `leases` (`index`), where jobs in a state of `wanted` belong:
-- true to go on with it, else false; one without a hash is forgotten, one in a state that does not belong removed.
local function belongs(id, index, wanted, gone)
  local state = redis.pcall('HGET', key_of(id), 'state')
  if type(state) ~= 'string' then  -- no hash, or a key of another kind
    forget(id)
    gone[#gone + 1] = id
  elseif wanted[state] then
    return true
  elseif NEXT[state] then
    redis.call('ZREM', P .. index, id)
  end
  return false
end

local function place(id)
  return tonumber(redis.call('HGET', key_of(id), 'sequence')) or redis.call('INCR', P .. 'sequence')
end

-- Move a job to another state if the table allows it, and say so in its history. Returns that event's id, else false.
local function move(id, to, reason, message, now)
  local key = key_of(id)
  local from = redis.call('HGET', key, 'state')
  if not (NEXT[from] and NEXT[from][to]) then return false end
  redis.call('ZREM', P .. 'in:' .. from, id)
  redis.call('ZADD', P .. 'in:' .. to, 0, id)
  redis.call('HSET', key, 'state', to, 'reason', reason, 'message', message, 'updated_at', ms(now))
  redis.call('HDEL', key, 'progress', 'waiting')
  if not ACTIVE[to] then redis.call('ZREM', P .. 'leases', id) end
  if TERMINAL[to] then
    redis.call('HSET', key, 'finished_at', ms(now))
    redis.call('ZREM', P .. 'ready', id)
    redis.call('ZREM', P .. 'delayed', id)
  end
  return note(id, now)
end

-- nil when the attempt owns the job, else the answer that says why not.
local function refusal(id, epoch)
  local job = redis.call('HMGET', key_of(id), 'state', 'epoch')
  if not job[1] then return { 'MISSING' } end
  if job[2] ~= epoch or not ACTIVE[job[1]] then return { 'FENCED', job[2], job[1] } end
  return nil
end

-- An attempt is gone: cancelled if that was asked, failed when it was the last one, else to the end of the line after a
-- while, so that a job that takes its runner down with it does not stand in front of all others.
local function lose(id, reason, message, backoff, now)
  local key = key_of(id)
  local job = redis.call('HMGET', key, 'state', 'max_attempts', 'lost_attempts')
  local lost = (tonumber(job[3]) or 0) + 1
  redis.call('HSET', key, 'lost_attempts', lost)
  if job[1] == 'cancelling' then return move(id, 'cancelled', 'cancelled', message, now) end
  if lost >= (tonumber(job[2]) or 1) then return move(id, 'failed', reason, message, now) end
  redis.call('HSET', key, 'sequence', redis.call('INCR', P .. 'sequence'))
  redis.call('ZADD', P .. 'delayed', ms(now + backoff * 2 ^ (lost - 1)), id)
  return move(id, 'queued', reason, message, now)
end

-- A server that is full refuses the first write of a script and no later one, so as not to stop it half-way. What keeps
-- running jobs alive begins with a write that takes no room, and so goes through; only `enqueue` is refused.
local function even_when_full() redis.call('DEL', P .. 'nothing') end

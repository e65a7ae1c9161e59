-- Shared by every script. KEYS[1] is the key prefix; it holds one hash tag, so all keys live in one cluster slot.
-- NEXT (the transition table), TERMINAL, ACTIVE and EVENTS_KEPT are written above this text from Python.
--   job:<id>      HASH    the job            job:<id>:ev  STREAM  its events
--   all, in:<state>  ZSET  ids at score 0, so that they list in id (= creation) order
--   ready ZSET by sequence    delayed ZSET by time    leases ZSET by expiry    idem:<digest> HASH
local P = KEYS[1]

local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function key_of(id) return P .. 'job:' .. id end

local function ms(value) return string.format('%d', value) end

local function add_event(id, json)
  return redis.call('XADD', key_of(id) .. ':ev', 'MAXLEN', '~', EVENTS_KEPT, '*', 'json', json)
end

local function note(id, now)
  local job = redis.call('HMGET', key_of(id), 'state', 'reason', 'epoch')
  add_event(id, cjson.encode({
    type = 'state', at = now / 1000, state = job[1], reason = job[2], attempt = tonumber(job[3])
  }))
end

local function reply(word, id)
  return { word, redis.call('HGETALL', key_of(id)) }
end

-- Move a job to another state if the table allows it, and say so in its stream.
local function move(id, to, reason, message, now)
  local key = key_of(id)
  local from = redis.call('HGET', key, 'state')
  if not (NEXT[from] and NEXT[from][to]) then return false end
  redis.call('ZREM', P .. 'in:' .. from, id)
  redis.call('ZADD', P .. 'in:' .. to, 0, id)
  redis.call('HSET', key, 'state', to, 'reason', reason, 'message', message, 'updated_at', ms(now))
  if not ACTIVE[to] then redis.call('ZREM', P .. 'leases', id) end
  if TERMINAL[to] then
    redis.call('HSET', key, 'finished_at', ms(now))
    redis.call('ZREM', P .. 'ready', id)
    redis.call('ZREM', P .. 'delayed', id)
  end
  note(id, now)
  return true
end

-- nil when the attempt owns the job, else the answer that says why not.
local function refusal(id, epoch)
  local job = redis.call('HMGET', key_of(id), 'state', 'epoch')
  if not job[1] then return { 'MISSING' } end
  if job[2] ~= epoch or not ACTIVE[job[1]] then return { 'FENCED', job[2], job[1] } end
  return nil
end

-- An attempt is gone: cancelled if that was asked, failed when it was the last one, else back in line after a while.
local function lose(id, reason, message, backoff, now)
  local key = key_of(id)
  local lost = redis.call('HINCRBY', key, 'lost_attempts', 1)
  local job = redis.call('HMGET', key, 'state', 'max_attempts')
  if job[1] == 'cancelling' then return move(id, 'cancelled', 'cancelled', message, now) end
  if lost >= tonumber(job[2]) then return move(id, 'failed', reason, message, now) end
  redis.call('ZADD', P .. 'delayed', ms(now + backoff * 2 ^ (lost - 1)), id)
  return move(id, 'queued', reason, message, now)
end

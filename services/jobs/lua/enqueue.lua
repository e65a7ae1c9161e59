-- id, name, spec, steps, max_attempts, key digest or '', fingerprint, key time to live in seconds, '1' when it is full
local id, digest = ARGV[1], ARGV[6]
if redis.call('EXISTS', key_of(id)) == 1 then return reply('EXISTS', id) end  -- the client sent it twice
if digest ~= '' then
  local known = redis.call('HMGET', P .. 'idem:' .. digest, 'id', 'fingerprint')
  if known[1] and redis.call('EXISTS', key_of(known[1])) == 1 then
    if known[2] ~= ARGV[7] then return { 'CONFLICT' } end
    return reply('EXISTS', known[1])
  end
end
if ARGV[9] == '1' then return { 'FULL' } end
if digest ~= '' then
  redis.call('HSET', P .. 'idem:' .. digest, 'id', id, 'fingerprint', ARGV[7])
  redis.call('EXPIRE', P .. 'idem:' .. digest, ARGV[8])
end
local now = now_ms()
local sequence = redis.call('INCR', P .. 'sequence')
redis.call('HSET', key_of(id), 'id', id, 'name', ARGV[2], 'spec_json', ARGV[3], 'steps', ARGV[4],
  'max_attempts', ARGV[5], 'state', 'queued', 'reason', '', 'message', '', 'epoch', 0, 'lost_attempts', 0,
  'sequence', sequence, 'created_at', ms(now), 'updated_at', ms(now))
redis.call('ZADD', P .. 'all', 0, id)
redis.call('ZADD', P .. 'in:queued', 0, id)
redis.call('ZADD', P .. 'ready', sequence, id)
note(id, now)
return reply('CREATED', id)

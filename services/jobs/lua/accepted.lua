-- key digest, fingerprint: the job that was stored under this key
local known = redis.call('HMGET', P .. 'idem:' .. ARGV[1], 'id', 'fingerprint')
if not known[1] or redis.call('EXISTS', key_of(known[1])) == 0 then return { 'NONE' } end
if known[2] ~= ARGV[2] then return { 'CONFLICT' } end
return reply('EXISTS', known[1])

-- id, event id, limit: what both streams have after it, and up to which step events were dropped
local id = ARGV[1]
local job = redis.call('HMGET', key_of(id), 'state', 'dropped_to', 'dropped')
if not job[1] then return { 'MISSING' } end
local answer = { 'OK', job[2] or '', job[3] or '0' }
for _, name in ipairs({ ':ev', ':st' }) do
  answer[#answer + 1] = redis.call('XRANGE', key_of(id) .. name, '(' .. ARGV[2], '+', 'COUNT', ARGV[3])
end
return answer

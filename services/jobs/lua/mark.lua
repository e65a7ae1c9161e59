-- name, ms: true for the first to say it within that time; a full server takes it, because it may end a session
even_when_full()
if redis.call('SET', P .. 'mark:' .. ARGV[1], '1', 'NX', 'PX', ARGV[2]) then return { 'OK' } end
return { 'KNOWN' }

-- id, epoch, event as JSON, completed step or ''
local refused = refusal(ARGV[1], ARGV[2])
if refused then return refused end
if ARGV[4] ~= '' then redis.call('HSET', key_of(ARGV[1]), 'step', ARGV[4]) end
return { 'OK', add_event(ARGV[1], ARGV[3]) }

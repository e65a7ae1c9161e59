-- id, epoch, state, reason, message
even_when_full()
local refused = refusal(ARGV[1], ARGV[2])
if refused then return refused end
if not move(ARGV[1], ARGV[3], ARGV[4], ARGV[5], now_ms()) then return reply('ILLEGAL', ARGV[1]) end
return reply('OK', ARGV[1])

-- id, epoch, reason, message, backoff ms
even_when_full()
local refused = refusal(ARGV[1], ARGV[2])
if refused then return refused end
lose(ARGV[1], ARGV[3], ARGV[4], tonumber(ARGV[5]), now_ms())
return reply('OK', ARGV[1])

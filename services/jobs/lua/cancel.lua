-- id
even_when_full()
local id = ARGV[1]
local state = redis.call('HGET', key_of(id), 'state')
if not state then return { 'MISSING' } end
if state == 'cancelling' then return reply('OK', id) end
local to = 'cancelling'
if state == 'queued' then to = 'cancelled' end
if not move(id, to, 'cancelled', '', now_ms()) then return reply('ILLEGAL', id) end
return reply('OK', id)

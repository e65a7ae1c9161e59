-- ids that a list met without a record: forget those that have none, and return them
local gone = {}
for _, id in ipairs(ARGV) do
  if redis.call('EXISTS', key_of(id)) == 0 then
    forget(id)
    gone[#gone + 1] = id
  end
end
return gone

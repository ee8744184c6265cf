-- KEYS: the key. ARGV: prefix, tags. The reply is the number of tags taken off.
local key, record, taken = KEYS[1], P .. 'k:' .. KEYS[1], 0
for i = 2, #ARGV do
  taken = taken + redis.call('SREM', record, ARGV[i])
  detach(key, ARGV[i])
end
unschedule(key)
return taken

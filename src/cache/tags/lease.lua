-- KEYS: the key. ARGV: prefix, token, lease ms, tags. The reply: exists; or wait, and for how many ms; or leased.
if redis.call('EXISTS', KEYS[1]) == 1 then return { 'exists', -1 } end
local lease = P .. 'l:' .. KEYS[1]
local left = redis.call('PTTL', lease)
if left > 0 then return { 'wait', left } end
redis.call('DEL', lease)
redis.call('HSET', lease, 'token', ARGV[2])
for i = 4, #ARGV do redis.call('HSET', lease, 't:' .. ARGV[i], redis.call('GET', P .. 'v:' .. ARGV[i]) or '') end
redis.call('PEXPIRE', lease, ARGV[3])
return { 'leased', tonumber(ARGV[3]) }

-- KEYS: the key. ARGV: prefix, recheck ms, most tags of a key, tags. The reply is the number of tags that are new.
local key, record = KEYS[1], P .. 'k:' .. KEYS[1]
local left = redis.call('PTTL', key)
if left == -2 then return 0 end
local tags, fresh = {}, {}
for i = 4, #ARGV do
  tags[#tags + 1] = ARGV[i]
  if redis.call('SISMEMBER', record, ARGV[i]) == 0 then fresh[ARGV[i]] = true end
end
local total = redis.call('SCARD', record)
for _ in pairs(fresh) do total = total + 1 end
if total > tonumber(ARGV[3]) then
  return redis.error_reply('ERR larder: a key may have ' .. ARGV[3] .. ' tags at most (tags.per_key_max)')
end
redis.call('SADD', P .. 'tags', unpack(tags))
local added = redis.call('SADD', record, unpack(tags))
for _, tag in ipairs(tags) do redis.call('SADD', P .. 't:' .. tag, key) end
schedule(key, left, tonumber(ARGV[2]))
return added

-- KEYS: the key. ARGV: prefix, value, token, recheck ms, number of tags, 1 for GET, condition, value of IFEQ, tags,
-- options of SET. The reply is that of SET.
local key, token, recheck, count, gets, condition = KEYS[1], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], ARGV[7]
local lease = P .. 'l:' .. key
if token ~= '' then
  local held, known, void = redis.call('HGETALL', lease), false, redis.call('EXISTS', key) == 1
  for i = 1, #held, 2 do
    if held[i] == 'token' then
      known = held[i + 1] == token
    elseif (redis.call('GET', P .. 'v:' .. string.sub(held[i], 3)) or '') ~= held[i + 1] then
      void = true
    end
  end
  if void or not known then
    return redis.error_reply('LEASELOST the key or one of its tags was written or invalidated since, or the lease is over')
  end
end
local tags, wanted = {}, {}
for i = 9, 8 + count do
  tags[#tags + 1] = ARGV[i]
  wanted[ARGV[i]] = true
end
local set = { 'SET', key, ARGV[2] }
for i = 9 + count, #ARGV do set[#set + 1] = ARGV[i] end
-- Who may not write the index is refused here, before anything has changed.
if count > 0 then redis.call('SADD', P .. 'tags', unpack(tags)) end
local reply = redis.pcall(unpack(set))
local stored
if type(reply) == 'table' and reply.err then
  stored = false
elseif gets == '0' then
  stored = reply ~= false
elseif condition == 'nx' then
  stored = reply == false
elseif condition == 'xx' then
  stored = reply ~= false
elseif condition == 'ifeq' then
  stored = reply == ARGV[8]
else
  stored = true
end
if not stored then
  for _, tag in ipairs(tags) do prune(tag) end
  return reply
end
local record = P .. 'k:' .. key
for _, tag in ipairs(redis.call('SMEMBERS', record)) do
  if not wanted[tag] then detach(key, tag) end
end
redis.call('DEL', record, lease)
local left = redis.call('PTTL', key)
if count > 0 and left ~= -2 then
  redis.call('SADD', record, unpack(tags))
  for _, tag in ipairs(tags) do redis.call('SADD', P .. 't:' .. tag, key) end
  schedule(key, left, recheck)
else
  for _, tag in ipairs(tags) do detach(key, tag) end
  unschedule(key)
end
-- The value that was to go is gone: this one is newer than the invalidations under way.
for _, id in ipairs(redis.call('ZRANGE', P .. 'jobs', 0, -1)) do redis.call('SREM', P .. 'j:' .. id, key) end
return reply

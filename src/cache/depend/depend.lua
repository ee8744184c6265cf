-- Lets a key depend on others. KEYS: what it is to depend on; declared, so that the server tells the connection that runs
-- this of every change of them from this very step on. ARGV: prefix, the key, recheck ms, most keys that a key may depend
-- on, most that may depend on one key, longest chain, most keys looked at. The reply is the number of new dependencies.
local key, record = ARGV[2], P .. 'd:' .. ARGV[2]
local sources_max, dependents_max, depth_max, looked_max =
  tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local left = redis.call('PTTL', key)
if left == -2 then left = redis.call('PTTL', P .. 'l:' .. key) end
if left == -2 then return 0 end
local fresh, named, total = {}, {}, redis.call('SCARD', record)
for i = 1, #KEYS do
  local source = KEYS[i]
  if source == key then return redis.error_reply('ERR larder: a key cannot depend on itself') end
  if not named[source] and redis.call('SISMEMBER', record, source) == 0 then
    if redis.call('ZCARD', P .. 's:' .. source) >= dependents_max then
      return redis.error_reply('ERR larder: ' .. dependents_max .. ' keys at most may depend on one key (depend.dependents_max)')
    end
    fresh[#fresh + 1] = source
    total = total + 1
  end
  named[source] = true
end
if total > sources_max then
  return redis.error_reply('ERR larder: a key may depend on ' .. sources_max .. ' keys at most (depend.sources_max)')
end
-- How many levels of keys there are above or below some, and false if they are too many to be counted.
local looked = 0
local function levels(first, next_of)
  local seen, level, depth = {}, first, 0
  for _, name in ipairs(first) do seen[name] = true end
  while true do
    local following = {}
    for _, name in ipairs(level) do
      for _, other in ipairs(next_of(name)) do
        if not seen[other] then
          seen[other] = true
          looked = looked + 1
          following[#following + 1] = other
        end
      end
      if looked > looked_max then return false end
    end
    if #following == 0 then return depth end
    level, depth = following, depth + 1
    if depth > depth_max then return depth end
  end
end
if #fresh > 0 then
  local above = levels(fresh, function(name) return redis.call('SMEMBERS', P .. 'd:' .. name) end)
  local below = levels({ key }, function(name) return redis.call('ZRANGE', P .. 's:' .. name, 0, -1) end)
  if not above or not below then
    return redis.error_reply('ERR larder: more than ' .. looked_max .. ' keys are connected with these')
  end
  if above + 1 + below > depth_max then
    return redis.error_reply('ERR larder: a chain of dependencies may have ' .. depth_max .. ' links at most (depend.depth_max)')
  end
end
local serial = redis.call('INCR', P .. 'serial')
for i = 1, #KEYS do
  -- What is not there now is known not to be: it has not changed as long as it is not.
  local there = redis.call('EXISTS', KEYS[i]) == 1
  redis.call('ZADD', P .. 's:' .. KEYS[i], there and serial or -serial, key)
  redis.call('ZADD', P .. 'sources', serial, KEYS[i])
  redis.call('SADD', record, KEYS[i])
end
schedule(key, left, tonumber(ARGV[3]))
return #fresh

-- Some keys have changed: what depends on them is set aside and deleted, the first step of it here. ARGV: prefix, id, claim
-- ms, keys of a step, bound, 1 if the keys stay whatever depends on what, the keys. A bound of 0 or more spares
-- dependencies with a higher serial, which are newer than the change, and those on a key that was not there when they were
-- made and is not there now. The reply: number of keys deleted, number of dependencies spared, ids of deletions of dependents
-- that are under way (this one too, and those of others that may have been faster), names of the keys that were deleted.
local id, claim, step, bound, stay = ARGV[2], now() + tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
local aside, spared, found = P .. 'j:' .. id, 0, false
for i = 7, #ARGV do
  local edges = redis.call('ZRANGE', P .. 's:' .. ARGV[i], 0, -1, 'WITHSCORES')
  local missing = #edges > 0 and bound >= 0 and redis.call('EXISTS', ARGV[i]) == 0
  for n = 1, #edges, 2 do
    local serial = tonumber(edges[n + 1])
    if bound >= 0 and (math.abs(serial) > bound or (serial < 0 and missing)) then
      spared = spared + 1
    elseif set_aside(id, edges[n]) then
      found = true
    end
  end
end
local deleted, names = 0, {}
if found then redis.call('ZADD', P .. 'jobs', claim, id) end
if found and stay then
  for i = 7, #ARGV do
    redis.call('SADD', P .. 'o:' .. id, ARGV[i])
    redis.call('SREM', aside, ARGV[i])
  end
end
if found then
  local ended, failure
  deleted, ended, failure = drop(id, step, names)
  if failure then return failure end
end
local left = {}
for _, job in ipairs(redis.call('ZRANGE', P .. 'jobs', 0, -1)) do
  if string.sub(job, 1, 4) == 'dep:' then left[#left + 1] = job end
end
return { deleted, spared, left, names }

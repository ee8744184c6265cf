-- The commit point of an invalidation by tags: what has them now is set aside, in one step whatever its number.
-- ARGV: prefix, id, claim ms, lease ms, keys of a step, ANY or ALL, tags. The reply: number of keys set aside, of keys
-- deleted already, ids of what is left to delete, ids of what others have set aside of these tags and not deleted yet, names
-- of the keys that were deleted.
local id, claim, step = ARGV[2], now() + tonumber(ARGV[3]), tonumber(ARGV[5])
local ids, total, named, others = {}, 0, {}, {}
for i = 7, #ARGV do named[ARGV[i]] = true end
local under_way = redis.call('HGETALL', P .. 'jobtags')
for i = 1, #under_way, 2 do
  if named[under_way[i + 1]] then others[#others + 1] = under_way[i] end
end
for i = 7, #ARGV do redis.call('SET', P .. 'v:' .. ARGV[i], id, 'PX', ARGV[4]) end
if ARGV[6] == 'ALL' then
  local sets = {}
  for i = 7, #ARGV do sets[#sets + 1] = P .. 't:' .. ARGV[i] end
  total = redis.call('SINTERSTORE', P .. 'j:' .. id, unpack(sets))
  if total > 0 then ids[1] = id end
else
  for i = 7, #ARGV do
    local members = P .. 't:' .. ARGV[i]
    local count = redis.call('SCARD', members)
    if count > 0 then
      ids[#ids + 1] = id .. ':' .. i
      redis.call('RENAME', members, P .. 'j:' .. ids[#ids])
      redis.call('HSET', P .. 'jobtags', ids[#ids], ARGV[i])
      redis.call('SREM', P .. 'tags', ARGV[i])
      total = total + count
    end
  end
end
for _, part in ipairs(ids) do redis.call('ZADD', P .. 'jobs', claim, part) end
local deleted, left, names = 0, {}, {}
for _, part in ipairs(ids) do
  if total > step then
    left[#left + 1] = part
  else
    local n, ended, failure = drop(part, step, names)
    if failure then return failure end
    deleted = deleted + n
    -- What depended on them is still to go.
    if redis.call('EXISTS', P .. 'j:dep:' .. part) == 1 then left[#left + 1] = 'dep:' .. part end
  end
end
return { total, deleted, left, others, names }

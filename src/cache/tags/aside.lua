-- The commit point of an invalidation by tags: what has them now is set aside, in one step whatever its number.
-- ARGV: prefix, id, claim ms, lease ms, keys of a step, ANY or ALL, tags. The reply: number of keys set aside, of keys
-- deleted already, ids of what is left to delete, names of the keys that were deleted.
local id, claim, step = ARGV[2], now() + tonumber(ARGV[3]), tonumber(ARGV[5])
local ids, total = {}, 0
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
return { total, deleted, left, names }

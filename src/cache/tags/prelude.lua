-- What all scripts share. ARGV[1] is the prefix of the index; its layout is described in cache/tags.rs.
local P = ARGV[1]
local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
-- The registry holds only tags that some key has.
local function prune(tag)
  if redis.call('EXISTS', P .. 't:' .. tag) == 0 then redis.call('SREM', P .. 'tags', tag) end
end
local function detach(key, tag)
  redis.call('SREM', P .. 't:' .. tag, key)
  prune(tag)
end
-- The key depends on `source` no more.
local function release(key, source)
  local dependents = P .. 's:' .. source
  redis.call('ZREM', dependents, key)
  if redis.call('EXISTS', dependents) == 0 then redis.call('ZREM', P .. 'sources', source) end
end
-- Nothing is known any more of keys that are gone, nor do leases on them hold. All at once, since a call costs the server more
-- than a key in it. The number of tags and dependencies that were taken off says how long it took.
local SHARED_TAGS_MAX = 4
local function forget(keys, depends)
  local records, rest, taken = {}, {}, 0
  for i, key in ipairs(keys) do
    records[i] = P .. 'k:' .. key
    rest[2 * i - 1], rest[2 * i] = records[i], P .. 'l:' .. key
  end
  local tags = redis.call('SUNION', unpack(records))
  if #tags <= SHARED_TAGS_MAX then
    for _, tag in ipairs(tags) do
      if redis.call('SREM', P .. 't:' .. tag, unpack(keys)) > 0 then prune(tag) end
    end
    taken = #tags
  else
    for i, key in ipairs(keys) do
      local own = redis.call('SMEMBERS', records[i])
      for _, tag in ipairs(own) do detach(key, tag) end
      taken = taken + #own
    end
  end
  redis.call('UNLINK', unpack(rest))
  redis.call('ZREM', P .. 'due', unpack(keys))
  if not depends then return taken end
  for _, key in ipairs(keys) do
    local record = P .. 'd:' .. key
    local sources = redis.call('SMEMBERS', record)
    for _, source in ipairs(sources) do release(key, source) end
    if #sources > 0 then redis.call('UNLINK', record) end
    taken = taken + #sources
  end
  return taken
end
-- True if some key depends on another.
local function has_dependents() return redis.call('EXISTS', P .. 'sources') == 1 end
-- Nothing is to be looked after any more of a key that has neither tags nor dependencies.
local function unschedule(key)
  if redis.call('EXISTS', P .. 'k:' .. key, P .. 'd:' .. key) == 0 then redis.call('ZREM', P .. 'due', key) end
end
-- When to look again whether the key is still there: after its end, but not later than after `recheck` ms.
local function when(left, recheck)
  if left < 0 or left > recheck then left = recheck end
  return now() + left
end
local function schedule(key, left, recheck)
  redis.call('ZADD', P .. 'due', when(left, recheck), key)
end
-- Sets a dependent aside to be deleted as `id`; false if another deletion of dependents under way is to delete it. Were it set
-- aside twice, the second deletion could come when the first has ended, and meet a value that was set since.
local under_way
local function set_aside(id, key)
  under_way = under_way or redis.call('ZRANGE', P .. 'jobs', 0, -1)
  for _, job in ipairs(under_way) do
    local dependents = job ~= id and string.sub(job, 1, 4) == 'dep:'
    if dependents and redis.call('SISMEMBER', P .. 'j:' .. job, key) == 1 then return false end
  end
  redis.call('SADD', P .. 'j:' .. id, key)
  return true
end
-- What depends on a key that is gone goes, too: it is set aside as a deletion of dependents, which has `dep:` in front of its
-- id. Who is one of the deletion's origins stays, and depends on the key as one that is not there.
local function follow(id, key)
  local dependents = P .. 's:' .. key
  local edges = redis.call('ZRANGE', dependents, 0, -1, 'WITHSCORES')
  if #edges == 0 then return end
  local own = string.sub(id, 1, 4) == 'dep:' and id or 'dep:' .. id
  for i = 1, #edges, 2 do
    if redis.call('SISMEMBER', P .. 'o:' .. own, edges[i]) == 1 then
      redis.call('ZADD', dependents, -math.abs(tonumber(edges[i + 1])), edges[i])
    elseif set_aside(own, edges[i]) and redis.call('ZADD', P .. 'jobs', 'NX', redis.call('ZSCORE', P .. 'jobs', id), own) == 1 then
      under_way = nil
    end
  end
end
-- Deletes up to `count` of the keys that were set aside as `id`, and notes their names. All of them are put back if one
-- cannot be deleted, so that none is lost to who takes the job up again.
local function drop(id, count, names)
  -- A little of the garbage of each step, rather than much of that of fifty: this is what the server does else.
  pcall(function() collectgarbage('step', 0) end)
  local aside, deleted, left, taken = P .. 'j:' .. id, 0, tonumber(count), 0
  while left > 0 do
    local keys = redis.call('SPOP', aside, left)
    if #keys == 0 then break end
    left = left - #keys
    local n = redis.pcall('UNLINK', unpack(keys))
    if type(n) == 'table' then
      redis.call('SADD', aside, unpack(keys))
      return deleted, false, n
    end
    deleted = deleted + n
    local depends = has_dependents()
    taken = taken + forget(keys, depends)
    for _, key in ipairs(keys) do
      if depends then follow(id, key) end
      names[#names + 1] = key
    end
  end
  local ended = redis.call('EXISTS', aside) == 0
  if ended then
    redis.call('ZREM', P .. 'jobs', id)
    redis.call('HDEL', P .. 'jobtags', id)
    redis.call('UNLINK', P .. 'o:' .. id)
  end
  return deleted, ended, false, taken
end

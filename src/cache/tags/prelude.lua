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
local function forget(key)
  local record = P .. 'k:' .. key
  for _, tag in ipairs(redis.call('SMEMBERS', record)) do detach(key, tag) end
  redis.call('DEL', record)
  redis.call('ZREM', P .. 'due', key)
end
-- When to look again whether the key is still there: after its end, but not later than after `recheck` ms.
local function schedule(key, left, recheck)
  if left < 0 or left > recheck then left = recheck end
  redis.call('ZADD', P .. 'due', now() + left, key)
end
-- Deletes up to `count` of the keys that were set aside as `id`, and notes their names. All of them are put back if one
-- cannot be deleted, so that none is lost to who takes the job up again.
local function drop(id, count, names)
  local aside, deleted = P .. 'j:' .. id, 0
  local keys = redis.call('SPOP', aside, count)
  for i, key in ipairs(keys) do
    local n = redis.pcall('UNLINK', key)
    if type(n) == 'table' then
      for j = i, #keys do redis.call('SADD', aside, keys[j]) end
      return deleted, false, n
    end
    deleted = deleted + n
    redis.call('DEL', P .. 'l:' .. key)
    forget(key)
    names[#names + 1] = key
  end
  local ended = redis.call('EXISTS', aside) == 0
  if ended then redis.call('ZREM', P .. 'jobs', id) end
  return deleted, ended, false
end

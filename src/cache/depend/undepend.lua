-- KEYS: the key. ARGV: prefix, what it is not to depend on any more; nothing for all. The reply: on how many it did.
local key, record, taken = KEYS[1], P .. 'd:' .. KEYS[1], 0
local sources = {}
for i = 2, #ARGV do sources[#sources + 1] = ARGV[i] end
if #sources == 0 then sources = redis.call('SMEMBERS', record) end
for _, source in ipairs(sources) do
  if redis.call('SREM', record, source) == 1 then
    release(key, source)
    taken = taken + 1
  end
end
unschedule(key)
return taken

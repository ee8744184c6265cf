-- Refuses who may not do by hand what a dependency will do: look at the sources, delete the key, write the index. KEYS: the
-- key. ARGV: prefix, sources.
for i = 2, #ARGV do redis.call('EXISTS', ARGV[i]) end
local may = redis.acl_check_cmd
if may and not (may('UNLINK', KEYS[1]) and may('SADD', P .. 'd:' .. KEYS[1], KEYS[1])) then
  return redis.error_reply('NOPERM larder: this user may not delete the key or not write the index')
end
return 1

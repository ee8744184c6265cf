-- ARGV: prefix, tag, cursor, count. The reply is a cursor and those keys of the step that are still there.
local step = redis.call('SSCAN', P .. 't:' .. ARGV[2], ARGV[3], 'COUNT', ARGV[4])
local keys = {}
for _, key in ipairs(step[2]) do
  if redis.call('EXISTS', key) == 1 then keys[#keys + 1] = key end
end
return { step[1], keys }

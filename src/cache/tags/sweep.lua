-- One step of the sweeper. ARGV: prefix, sweeper's name, lock ms, claim ms, recheck ms, keys of a step. The reply: 1 if this
-- sweeper has the lock, number of keys looked at, of keys that were gone, of keys that are known, id of a job to take up.
local known, jobs = redis.call('ZCARD', P .. 'due'), redis.call('ZCARD', P .. 'jobs')
if known == 0 and jobs == 0 then return { 1, 0, 0, 0, '' } end
local lock = redis.call('GET', P .. 'sweeper')
if lock and lock ~= ARGV[2] then return { 0, 0, 0, 0, '' } end
local at, recheck, step = now(), tonumber(ARGV[5]), tonumber(ARGV[6])
redis.call('SET', P .. 'sweeper', ARGV[2], 'PX', ARGV[3])
local due = redis.call('ZRANGEBYSCORE', P .. 'due', '-inf', at, 'LIMIT', 0, step)
local dead, later = {}, {}
for _, key in ipairs(due) do
  local left = redis.call('PTTL', key)
  -- Who has a lease may set it yet, and has said before on what it depends.
  if left == -2 then left = redis.call('PTTL', P .. 'l:' .. key) end
  if left == -2 then
    dead[#dead + 1] = key
  else
    later[#later + 1], later[#later + 2] = when(left, recheck), key
  end
end
if #dead > 0 then forget(dead, has_dependents()) end
if #later > 0 then redis.call('ZADD', P .. 'due', unpack(later)) end
local job = redis.call('ZRANGEBYSCORE', P .. 'jobs', '-inf', at, 'LIMIT', 0, 1)[1] or ''
if job ~= '' then redis.call('ZADD', P .. 'jobs', at + tonumber(ARGV[4]), job) end
return { 1, #due, #dead, known - #dead, job }

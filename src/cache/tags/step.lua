-- One step of an invalidation. ARGV: prefix, id, claim ms, keys of a step. The reply: number of keys deleted, 1 if that
-- was the last step, number of tags and dependencies that were taken off, names of the keys.
redis.call('ZADD', P .. 'jobs', 'XX', now() + tonumber(ARGV[3]), ARGV[2])
local names = {}
local deleted, ended, failure, taken = drop(ARGV[2], tonumber(ARGV[4]), names)
if failure then return failure end
return { deleted, ended and 1 or 0, taken, names }

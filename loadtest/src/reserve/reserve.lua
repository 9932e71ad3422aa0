-- A hold at three scopes, all or nothing.
-- KEYS: idempotency key, hold, the budgets of three scopes. ARGV: request digest, scope, holder, expiry, cpu_ms, invocations.
local known = redis.call('GET', KEYS[1])
if known then
  if string.sub(known, 1, #ARGV[1]) ~= ARGV[1] then return redis.error_reply('CONFLICT') end
  return string.sub(known, #ARGV[1] + 1)
end
local cpu_ms, invocations = tonumber(ARGV[5]), tonumber(ARGV[6])
local left, answer = {}, 'granted'
for i = 3, 5 do
  local budget = redis.call('HMGET', KEYS[i], 'cpu_ms', 'invocations')
  left[i] = { tonumber(budget[1]) - cpu_ms, tonumber(budget[2]) - invocations }
  if left[i][1] < 0 or left[i][2] < 0 then
    answer = 'denied ' .. KEYS[i]
    break
  end
end
if answer == 'granted' then
  for i = 3, 5 do
    redis.call('HSET', KEYS[i], 'cpu_ms', string.format('%d', left[i][1]), 'invocations', string.format('%d', left[i][2]))
  end
  redis.call('HSET', KEYS[2], 'scope', ARGV[2], 'holder', ARGV[3], 'expires', ARGV[4], 'cpu_ms', ARGV[5], 'invocations', ARGV[6])
end
redis.call('SET', KEYS[1], ARGV[1] .. answer)
return answer

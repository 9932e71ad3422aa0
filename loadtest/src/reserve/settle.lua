-- What a hold used is spent, the rest goes back, at three scopes.
-- KEYS: idempotency key, hold, the budgets of three scopes. ARGV: request digest, holder, cpu_ms, invocations.
local known = redis.call('GET', KEYS[1])
if known then
  if string.sub(known, 1, #ARGV[1]) ~= ARGV[1] then return redis.error_reply('CONFLICT') end
  return string.sub(known, #ARGV[1] + 1)
end
local hold = redis.call('HMGET', KEYS[2], 'holder', 'cpu_ms', 'invocations', 'closed')
local answer = 'settled'
if not hold[1] or hold[4] then
  answer = 'refused'
elseif hold[1] ~= ARGV[2] then
  answer = 'not the holder'
else
  local cpu_ms, invocations = tonumber(ARGV[3]), tonumber(ARGV[4])
  for i = 3, 5 do
    local budget = redis.call('HMGET', KEYS[i], 'cpu_ms', 'invocations', 'cpu_ms_spent', 'invocations_spent')
    redis.call('HSET', KEYS[i],
      'cpu_ms', string.format('%d', tonumber(budget[1]) + tonumber(hold[2]) - cpu_ms),
      'invocations', string.format('%d', tonumber(budget[2]) + tonumber(hold[3]) - invocations),
      'cpu_ms_spent', string.format('%d', tonumber(budget[3]) + cpu_ms),
      'invocations_spent', string.format('%d', tonumber(budget[4]) + invocations))
  end
  redis.call('HSET', KEYS[2], 'closed', 'settled', 'cpu_ms_used', ARGV[3], 'invocations_used', ARGV[4])
end
redis.call('SET', KEYS[1], ARGV[1] .. answer)
return answer

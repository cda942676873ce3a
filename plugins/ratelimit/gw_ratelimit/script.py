"""The script that decides within Redis or Valkey: the arithmetic of `gw_ratelimit.algorithms` once more, in Lua.

One call makes many decisions, each with all its zones or none. Numbers are Lua's doubles, exact up to 2^53; what could
become larger is refused when the configuration loads. The clock is the server's, so that machines need not agree on
one; only calendar periods come from outside.
"""

from __future__ import annotations

from typing import Final

__all__ = ["SCRIPT"]

SCRIPT: Final = """\
-- KEYS: one for each zone of each decision, all with one hash tag.
-- ARGV: for each decision the number of its zones, then for each: kind, two or three numbers, cost, how.
--   kind b: size and refill a ms; s: limit and length; f: limit, begin and end.   how 0: dry run, 1: counts, 2: charged anyway
-- Answer: the time in ms, then for each zone: admitted, at, a, b.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local LEAST = -9000000000000000
local states, lasts, answer = {}, {}, {now}
local key, arg = 0, 0

local function number()
  arg = arg + 1
  return tonumber(ARGV[arg])
end

local function state_of(name)
  local state = states[name]
  if state == nil then
    state = false
    local kept = redis.call('GET', name)
    if kept then
      local at, a, b = string.match(kept, '^(-?%d+):(-?%d+):(-?%d+)$')
      if at then state = {tonumber(at), tonumber(a), tonumber(b)} end
    end
    states[name] = state
  end
  return state
end

while arg < #ARGV do
  local trials, passes = {}, true
  for _ = 1, number() do
    key = key + 1
    arg = arg + 1
    local name, kind = KEYS[key], ARGV[arg]
    local limit, other = number(), number()
    local finish = kind == 'f' and number() or 0
    local cost, how = number(), number()
    local state = state_of(name)
    local was, at, a, b, fits, last = 0, 0, 0, 0, true, 0
    if state then was, a, b = state[1], state[2], state[3] end
    at = was
    if kind == 'b' then
      if not state then a = limit end
      if now > at then a = a + other * (now - at) end
      if a > limit then a = limit end
      at = now
      fits = cost * 1000000 <= a
      if fits or how == 2 then a = math.max(LEAST, a - cost * 1000000) end
      last = math.ceil((limit - a) / other)
    elseif kind == 's' then
      local window = math.floor(now / other)
      if window == at + 1 then
        at, a, b = window, 0, a
      elseif window ~= at and window ~= at - 1 then
        at, a, b = window, 0, 0
      end
      local left = other
      if window == at then left = other - now % other end
      fits = a * other + b * left + cost * other <= limit * other
      if fits or how == 2 then a = a + cost end
      last = (at + 2) * other - now
    else
      if other > at or at - other > finish - other then at, a = other, 0 end
      fits = a + cost <= limit
      if fits or how == 2 then a = a + cost end
      last = finish - now + 60000
    end
    if how == 1 and not fits then passes = false end
    trials[#trials + 1] = {name, fits or how == 2, at, a, b, last, at < was}
  end
  for _, trial in ipairs(trials) do
    local name, fits, at, a, b = trial[1], trial[2], trial[3], trial[4], trial[5]
    -- A clock that went back is written down in any case: from there on the time is counted.
    if (passes and fits) or (trial[7] and not fits) then
      states[name], lasts[name] = {at, a, b}, trial[6]
    end
    answer[#answer + 1] = fits and 1 or 0
    answer[#answer + 1] = at
    answer[#answer + 1] = a
    answer[#answer + 1] = b
  end
end

for name, last in pairs(lasts) do
  local state = states[name]
  redis.call('SET', name, string.format('%.0f:%.0f:%.0f', state[1], state[2], state[3]),
    'PX', string.format('%.0f', math.max(1, last)))
end
return answer
"""

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
--   kind c, requests under way: limit, the ms that they count unless they are said again, who has them, how (3: limit is how many he has)
-- Answer: the time in ms, then for each zone: admitted, at, a, b; of kind c how many are under way as a.
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

local function hold(name, holder, many, time)
  if many > 0 then
    redis.call('HSET', name, holder, string.format('%.0f:%.0f', many, now + time))
    redis.call('PEXPIRE', name, time)
  else
    redis.call('HDEL', name, holder)
  end
end

local function under_way(name, holder, time)
  local all, own = 0, 0
  local held = redis.call('HGETALL', name)
  for i = 1, #held, 2 do
    local many, till = string.match(held[i + 1], '^(%d+):(%d+)$')
    many, till = tonumber(many), tonumber(till)
    if not till or till <= now then
      redis.call('HDEL', name, held[i])
    else
      if till > now + time then hold(name, held[i], many, time) end -- the clock went back
      all = all + many
      if held[i] == holder then own = many end
    end
  end
  return all, own
end

while arg < #ARGV do
  local trials, passes = {}, true
  for _ = 1, number() do
    key = key + 1
    arg = arg + 1
    local name, kind = KEYS[key], ARGV[arg]
    local limit, other = number(), number()
    if kind == 'c' then
      arg = arg + 1
      local holder = ARGV[arg]
      local how = number()
      if how == 3 then
        hold(name, holder, limit, other)
        trials[#trials + 1] = {name, true, 0, limit, 0, 0, false, false}
      else
        local all, own = under_way(name, holder, other)
        if how == 1 and all >= limit then passes = false end
        trials[#trials + 1] = {name, all < limit, 0, all, own, other, false, holder}
      end
    else
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
  end
  for _, trial in ipairs(trials) do
    local name, fits, at, a, b, last, back, holder = unpack(trial)
    if holder then
      if passes then
        hold(name, holder, b + 1, last)
        a = a + 1
      end
    -- A clock that went back is written down in any case: from there on the time is counted.
    elseif holder == nil and ((passes and fits) or (back and not fits)) then
      states[name], lasts[name] = {at, a, b}, last
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

-- What wrk sends, and one line of figures when it is done: load.py reads them.
-- Arguments: the method, the size of the body in bytes, and "varied" where no two heads shall be the same.

function init(args)
   wrk.method = args[1]
   if tonumber(args[2]) > 0 then
      wrk.body = string.rep("x", tonumber(args[2]))
   end
   if args[3] == "varied" then
      local count = 0
      request = function()
         count = count + 1
         local headers = {
            ["Cookie"] = "session=" .. count .. "; theme=dark",
            ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
            ["Accept"] = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            ["Accept-Language"] = "en-GB,en;q=0.5",
            ["If-None-Match"] = '"' .. count * 7919 .. '"',
         }
         return wrk.format(nil, wrk.path .. "?page=" .. count, headers)
      end
   end
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format("figures %d %d %d %d %d %d %d %d %d\n",
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
      errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end

-- What wrk sends, and one line of figures when it is done: load.py reads them.
-- Arguments: the method, and the size of the body in bytes.

function init(args)
   wrk.method = args[1]
   if tonumber(args[2]) > 0 then
      wrk.body = string.rep("x", tonumber(args[2]))
   end
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format("figures %d %d %d %d %d %d %d %d %d\n",
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
      errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end

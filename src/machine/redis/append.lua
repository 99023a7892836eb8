-- The short way of the exchange: a batch of a session that is not to be renewed now, as most calls are. It does what exchange.lua
-- does, or nothing: then it returns nothing, and the client takes the long way.
local meta, log = KEYS[1], KEYS[2]
local identity, member, batch, events = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local known = redis.call('HMGET', meta, 'identity', 'head', 'opens', member)
if known[1] ~= identity or not known[4] or tonumber(batch) ~= known[4] + 1 or now < tonumber(known[3]) then return false end
local head = tonumber(known[2])
local position = math.max(head + 1, now)
local text = string.format('%.0f', position)
if not redis.call('XADD', log, 'NOMKSTREAM', text .. '-0', member, events) then return false end
redis.call('HSET', meta, 'head', text, member, batch)
return {head, position}

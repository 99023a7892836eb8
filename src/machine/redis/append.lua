-- The short way of the exchange: a batch of a session that is not to be renewed now, as most calls are. It does what exchange.lua
-- does, or nothing: then it returns nothing, and the client takes the long way. It asks for as little as it can, since each
-- call and each word that it handles costs as much as the work of a plain SET.
--
-- That the number of the session's last batch is there tells that the order is the client's own, and that it is open.
local meta, log = KEYS[1], KEYS[2]
local member, last, batch, events = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local known = redis.call('HMGET', meta, member, 'head')
local head = known[2]
-- The server numbers a thousand entries of one millisecond at most; more only come if its clock was set back.
if known[1] ~= last or not head or string.sub(head, -4) == '-999' then return false end
local id = redis.call('XADD', log, 'NOMKSTREAM', '*', member, events)
if not id then return false end
redis.call('HSET', meta, member, batch, 'head', id)
return {head, id}

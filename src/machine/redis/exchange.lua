-- The exchange of engine.rs, atomically, since a server runs one script at a time. Its rules have their numbers here.
--
-- meta   format, identity, head, kept (entries), snapped (the position of the snapshot, or of the first entry), opens (closed
--        before), members (numbers given), alive (sessions), b<member> (the number of the session's last batch)
-- log    a stream: one entry a batch, its id is the position; m the member, e the events
-- live   a sorted set: members by the end of their sessions
-- snap   the snapshot
--
-- Positions and times are microseconds since 1970, which a double has exactly until the year 2255.
local meta, log, live, snap = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local format, fresh, lives, says, identity, member, since = unpack(ARGV, 1, 7)
local batch, events, snapped_at, snapshot, most = unpack(ARGV, 8, 12)
lives, since = tonumber(lives), tonumber(since)
local call = redis.call

local function text(number) return string.format('%.0f', number) end
local function id(position) return string.format('%.0f-0', position) end

local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local known = call('HMGET', meta, 'format', 'identity', 'head', 'kept', 'snapped', 'opens', 'members', 'alive',
    'b' .. member)
if known[1] and known[1] ~= format then return {'format ' .. known[1]} end
local current, head, kept, snapped = known[2], tonumber(known[3]), tonumber(known[4]), tonumber(known[5])
local opens, members, alive, written = tonumber(known[6]), tonumber(known[7]), tonumber(known[8]), tonumber(known[9])
local is_new = batch ~= '' and written and tonumber(batch) > written
local first = call('ZRANGE', live, 0, 0, 'WITHSCORES')

-- The short way, of a client that has seen all there is, while nobody has died: six calls, and its own entry is told by its
-- position alone. It is the same as the long way; whatever is missing is left to that one.
if says == 'goes on' and current == identity and since == head and written and kept and opens and snapped_at == ''
    and first[2] and tonumber(first[2]) >= now
    and call('ZADD', live, 'XX', 'CH', text(now + lives), member) == 1 then
    local rest = text(tonumber(first[2]) - now)
    if not is_new then
        if call('EXISTS', log) == 1 then return {'nothing ' .. text(kept) .. ' ' .. rest} end
    elseif now < opens then
        return {'closed ' .. text(opens - now)}
    else
        local next = math.max(head + 1, now)
        if call('XADD', log, 'NOMKSTREAM', id(next), 'm', member, 'e', events) then
            call('HSET', meta, 'head', text(next), 'kept', text(kept + 1), 'b' .. member, batch)
            return {'own ' .. text(kept + 1) .. ' ' .. rest .. ' ' .. text(next)}
        end
    end
end

-- 1. The order is whole, or it begins anew.
local function has(position) return #call('XRANGE', log, id(position), id(position)) == 1 end
local function is_whole()
    if not (current and head and kept and snapped and opens and members and alive) then return false end
    if says == 'breaks' then return current ~= identity end
    if call('ZCARD', live) ~= alive or not has(head) or not has(snapped) then return false end
    if call('EXISTS', snap) == 0 then return false end
    if says == 'goes on' and current == identity then
        return since <= head and (since < snapped or has(since))
    end
    return true
end
if not is_whole() then
    call('DEL', meta, log, live, snap)
    head = math.max(now, (head or 0) + 1, (since or 0) + 1)
    current, kept, snapped, opens, members, alive = fresh, 1, head, now + lives, 0, 0
    call('XADD', log, id(head), 'm', '', 'e', '')
    call('SET', snap, '')
    call('HSET', meta, 'format', format, 'identity', current, 'head', text(head), 'kept', '1', 'snapped', text(snapped),
        'opens', text(opens), 'members', '0', 'alive', '0')
end

-- 2.
if says ~= 'joins' and identity ~= current then return {'lost'} end

local function append(of, what)
    head, kept = math.max(head + 1, now), kept + 1
    call('XADD', log, id(head), 'm', of, 'e', what)
end
local function leave(of)
    call('ZREM', live, of)
    call('HDEL', meta, 'b' .. of)
    alive = alive - 1
    append(of, '')
end
local function keep()
    call('HSET', meta, 'head', text(head), 'kept', text(kept), 'members', text(members), 'alive', text(alive))
end

-- 3. The dead are buried.
for _, dead in ipairs(call('ZRANGEBYSCORE', live, '-inf', '(' .. text(now))) do leave(dead) end

-- 4.
if says == 'joins' then
    member = text(members)
    members, alive, since = members + 1, alive + 1, -1
    call('ZADD', live, text(now + lives), member)
    call('HSET', meta, 'b' .. member, '0')
    append(member, events)
elseif not call('ZSCORE', live, member) then
    keep()
    return {'expired'}
elseif says == 'leaves' then
    leave(member)
    keep()
    return {'expired'}
else
    -- 5.
    if is_new then
        if now < opens then
            keep()
            return {'closed ' .. text(opens - now)}
        end
        append(member, events)
        call('HSET', meta, 'b' .. member, batch)
    end
    -- 6.
    call('ZADD', live, text(now + lives), member)
end

-- 7.
if snapped_at ~= '' and tonumber(snapped_at) > snapped and tonumber(snapped_at) <= head then
    snapped = tonumber(snapped_at)
    call('SET', snap, snapshot)
    call('XTRIM', log, 'MINID', id(snapped))
    kept = call('XLEN', log)
    call('HSET', meta, 'snapped', text(snapped))
end
keep()

-- 8.
first = call('ZRANGE', live, 0, 0, 'WITHSCORES')
local rest = text(math.max(0, tonumber(first[2]) - now))
local news = {table.concat({'news', text(kept), rest, text(head), current, member}, ' ')}
if since < snapped then
    since = snapped
    news[2] = {text(snapped), call('GET', snap)}
else
    news[2] = {}
end
news[3] = call('XRANGE', log, '(' .. id(since), '+', 'COUNT', most)
return news

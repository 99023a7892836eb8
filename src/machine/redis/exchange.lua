-- The exchange of engine.rs, atomically, since a server runs one script at a time. Its rules have their numbers here.
--
-- meta   format, identity, head, snapped (the position of the snapshot, or of the first entry), opens (closed before),
--        members (numbers given), alive (sessions); and for each session its member: the number of its last batch
-- log    a stream: one entry a batch, its id is the position; the member, and the events
-- live   a sorted set: members by the end of their sessions
-- snap   the snapshot
--
-- A member is told by its number and the key of its session, as in 7.0a1b2c3d.
--
-- Positions and times are microseconds since 1970, which a double has exactly until the year 2255.
local meta, log, live, snap = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local format, fresh, lives, says, identity, member, since, renews = unpack(ARGV, 1, 8)
local batch, events, snapped_at, snapshot, most = unpack(ARGV, 9, 13)
lives, since = tonumber(lives), tonumber(since)
local call = redis.call

local function text(number) return string.format('%.0f', number) end
local function id(position) return string.format('%.0f-0', position) end

local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local known = call('HMGET', meta, 'format', 'identity', 'head', 'snapped', 'opens', 'members', 'alive', member)
if known[1] and known[1] ~= format then return {'format', known[1]} end
local current, head, snapped, opens = known[2], tonumber(known[3]), tonumber(known[4]), tonumber(known[5])
local members, alive, written = tonumber(known[6]), tonumber(known[7]), tonumber(known[8])

-- 1. The order is whole, or it begins anew.
local function has(position) return #call('XRANGE', log, id(position), id(position)) == 1 end
local function is_whole()
    if not (current and head and snapped and opens and members and alive) then return false end
    if says == 'breaks' then return current ~= identity end
    local last = call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
    if call('ZCARD', live) ~= alive or not (last and last[1] == id(head)) or not has(snapped) then return false end
    if call('EXISTS', snap) == 0 then return false end
    if says == 'goes on' and current == identity then
        return since <= head and (since < snapped or has(since))
    end
    return true
end
if not is_whole() then
    call('DEL', meta, log, live, snap)
    head = math.max(now, (head or 0) + 1, (since or 0) + 1)
    current, snapped, opens, members, alive = fresh, head, now + lives, 0, 0
    call('XADD', log, id(head), '', '')
    call('SET', snap, '')
    call('HSET', meta, 'format', format, 'identity', current, 'head', text(head), 'snapped', text(snapped), 'opens',
        text(opens), 'members', '0', 'alive', '0')
end

-- 2.
if says ~= 'joins' and identity ~= current then return {'lost'} end

local function append(of, what)
    head = math.max(head + 1, now)
    call('XADD', log, id(head), of, what)
end
local function leave(of)
    call('ZREM', live, of)
    call('HDEL', meta, of)
    alive = alive - 1
    append(of, '')
end
local function keep()
    call('HSET', meta, 'head', text(head), 'members', text(members), 'alive', text(alive))
end

-- 3. The dead are buried.
if says ~= 'goes on' or renews ~= '' then
    for _, dead in ipairs(call('ZRANGEBYSCORE', live, '-inf', '(' .. text(now))) do leave(dead) end
end

-- 4.
if says == 'joins' then
    member = text(members) .. '.' .. string.sub(fresh, 1, 8)
    members, alive, since = members + 1, alive + 1, -1
    call('ZADD', live, text(now + lives), member)
    call('HSET', meta, member, '0')
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
    if batch ~= '' and tonumber(batch) > written then
        if now < opens then
            keep()
            return {'closed', opens - now}
        end
        append(member, events)
        call('HSET', meta, member, batch)
    end
    -- 6.
    if renews ~= '' then call('ZADD', live, text(now + lives), member) end
end

-- 7.
if snapped_at ~= '' and tonumber(snapped_at) > snapped and tonumber(snapped_at) <= head then
    snapped = tonumber(snapped_at)
    call('XTRIM', log, 'MINID', id(snapped))
    call('SET', snap, snapshot)
    call('HSET', meta, 'snapped', text(snapped))
end
keep()

-- 8.
local first = -1
if says == 'joins' or renews ~= '' then
    first = math.max(0, tonumber(call('ZRANGE', live, 0, 0, 'WITHSCORES')[2]) - now)
end
local older = {}
if since < snapped then
    since = snapped
    older = {snapped, call('GET', snap)}
end
local entries = call('XRANGE', log, '(' .. id(since), '+', 'COUNT', most)
return {'news', call('XLEN', log), head, first, current, member, older, entries}

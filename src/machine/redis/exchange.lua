-- The exchange of engine.rs, atomically, since a server runs one script at a time. Its rules have their numbers here.
--
-- meta   format, identity, head (no new order begins before it), snapped (the position of the snapshot, or of the first entry),
--        opens (closed before), lives (the time to live), members (numbers given), alive (sessions)
-- log    a stream: one entry a batch, with the member and the events. Most are added without this script; see mod.rs
-- live   a sorted set: members by the end of their sessions
-- snap   the snapshot
--
-- A member is told by its number and the key of its session, as in 7.0a1b2c3d4e5f6071.
--
-- Positions and times are microseconds since 1970, which a double has exactly until the year 2255. The id of an entry has the
-- milliseconds of its position before the dash, and the rest after it, as the server numbers entries by itself. Other ids are
-- foreign.
local meta, log, live, snap = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local format, fresh, lives, says, identity, member, since, renews = unpack(ARGV, 1, 8)
local batch, snapped_at, snapshot, insists, most = unpack(ARGV, 9, 13)
lives, since = tonumber(lives), tonumber(since)
local call = redis.call

local function text(number) return string.format('%.0f', number) end
local function id(position) return string.format('%.0f-%.0f', math.floor(position / 1000), position % 1000) end
local function position_of(id)
    local millis, rest = string.match(id, '^(%d+)-(%d+)$')
    return #millis < 14 and #rest < 4 and millis * 1000 + rest or nil
end

local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local at = now - now % 1000
local known = call('HMGET', meta, 'format', 'identity', 'head', 'snapped', 'opens', 'lives', 'members', 'alive')
if known[1] and known[1] ~= format then return {'format', known[1]} end
local current, floor, snapped, opens = known[2], tonumber(known[3]), tonumber(known[4]), tonumber(known[5])
local kept, members, alive = tonumber(known[6]), tonumber(known[7]), tonumber(known[8])
local last = call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
local head = last and position_of(last[1])

-- 1. The order is whole, or it begins anew.
local function has(position) return #call('XRANGE', log, id(position), id(position)) == 1 end
local function is_whole()
    if not (current and floor and snapped and opens and kept and members and alive) then return false end
    if says == 'breaks' then return current ~= identity end
    if not head or head < floor or not has(snapped) then return false end
    if call('ZCARD', live) ~= alive or call('EXISTS', snap) == 0 then return false end
    if says == 'goes on' and current == identity then
        return since <= head and (since < snapped or has(since))
    end
    return true
end
if not is_whole() then
    if says == 'looks' then return {'none'} end
    call('DEL', meta, log, live, snap)
    head = math.max(at, (head or 0) + 1, (floor or 0) + 1, (since or 0) + 1)
    current, snapped, opens, kept, members, alive = fresh, head, now + lives, lives, 0, 0
    call('XADD', log, id(head), '', '')
    call('SET', snap, '')
    call('HSET', meta, 'format', format, 'identity', current, 'head', text(head), 'snapped', text(snapped), 'opens',
        text(opens), 'lives', text(kept), 'members', '0', 'alive', '0')
end

-- 2.
if says ~= 'joins' and says ~= 'looks' and identity ~= current then return {'lost'} end

local function append(of, what)
    head = math.max(head + 1, at)
    call('XADD', log, id(head), of, what)
end
local function leave(of)
    call('ZREM', live, of)
    alive = alive - 1
    append(of, '')
end
local function keep()
    call('HSET', meta, 'head', text(head), 'lives', text(kept), 'members', text(members), 'alive', text(alive))
end

-- 3. The dead are buried.
if says == 'joins' or says == 'leaves' or renews ~= '' then
    for _, dead in ipairs(call('ZRANGEBYSCORE', live, '-inf', '(' .. text(now))) do leave(dead) end
end

-- 4.
if says == 'looks' then
    member = ''
elseif says == 'joins' then
    if alive == 0 then
        kept = lives
    elseif insists ~= '' and lives ~= kept then
        keep()
        return {'lives', kept}
    end
    member = text(members) .. '.' .. string.sub(fresh, 1, 16)
    members, alive, since = members + 1, alive + 1, -1
    call('ZADD', live, text(now + kept), member)
    append(member, batch)
elseif not call('ZSCORE', live, member) then
    keep()
    return {'expired'}
elseif says == 'leaves' then
    leave(member)
    keep()
    return {'expired'}
else
    -- 5.
    if batch ~= '' and now >= opens then append(member, batch) end
    -- 6.
    if renews ~= '' then call('ZADD', live, text(now + kept), member) end
end

-- 7.
if snapped_at ~= '' and tonumber(snapped_at) > snapped and tonumber(snapped_at) <= head then
    snapped = tonumber(snapped_at)
    call('XTRIM', log, 'MINID', id(snapped))
    call('SET', snap, snapshot)
    call('HSET', meta, 'snapped', text(snapped))
end
if says ~= 'looks' then keep() end

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
local entries = call('XRANGE', log, id(since), '+', 'COUNT', most)
return {'news', call('XLEN', log), head, first, kept, math.max(0, opens - now), current, member, older, entries}

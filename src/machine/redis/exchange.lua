-- The exchange of engine.rs, atomically, since a server runs one script at a time. Its rules have their numbers here.
--
-- meta   format, identity, head, snapped (the position of the snapshot, or of the first entry), opens (closed before),
--        members (numbers given), alive (sessions), b<member> (the number of the session's last batch)
-- log    a stream: one entry a batch, its id is the position; m the member, e the events
-- live   a sorted set: members by the end of their sessions
-- snap   the snapshot
--
-- Positions and times are microseconds since 1970, which a double has exactly until the year 2255.
local meta, log, live, snap = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local format, fresh, lives, says, identity, member, since = unpack(ARGV, 1, 7)
local batch, events, snapped_at, snapshot, most = unpack(ARGV, 8, 12)
lives, since = tonumber(lives), tonumber(since)

local function text(number) return string.format('%.0f', number) end
local function id(position) return text(position) .. '-0' end

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local known = redis.call('HMGET', meta, 'format', 'identity', 'head', 'snapped', 'opens', 'members', 'alive', 'b' .. member)
if known[1] and known[1] ~= format then return {'format', known[1]} end
local current, head, snapped, opens = known[2], tonumber(known[3]), tonumber(known[4]), tonumber(known[5])
local members, alive = tonumber(known[6]), tonumber(known[7])

-- 1. The order is whole, or it begins anew.
local function has(position) return #redis.call('XRANGE', log, id(position), id(position)) == 1 end
local function is_whole()
    if not (current and head and snapped and opens and members and alive) then return false end
    if says == 'breaks' then return current ~= identity end
    if redis.call('ZCARD', live) ~= alive or not has(head) or not has(snapped) then return false end
    if redis.call('EXISTS', snap) == 0 then return false end
    if says == 'goes on' and current == identity then
        return since <= head and (since < snapped or has(since))
    end
    return true
end
if not is_whole() then
    redis.call('DEL', meta, log, live, snap)
    head = math.max(now, (head or 0) + 1, (since or 0) + 1)
    current, snapped, opens, members, alive = fresh, head, now + lives, 0, 0
    redis.call('XADD', log, id(head), 'm', '', 'e', '')
    redis.call('SET', snap, '')
    redis.call('HSET', meta, 'format', format, 'identity', current, 'head', text(head), 'snapped', text(snapped),
        'opens', text(opens), 'members', '0', 'alive', '0')
end

-- 2.
if says ~= 'joins' and identity ~= current then return {'lost'} end

local function append(of, what)
    head = math.max(head + 1, now)
    redis.call('XADD', log, id(head), 'm', of, 'e', what)
end
local function leave(of)
    redis.call('ZREM', live, of)
    redis.call('HDEL', meta, 'b' .. of)
    alive = alive - 1
    append(of, '')
end
local function keep()
    redis.call('HSET', meta, 'head', text(head), 'members', text(members), 'alive', text(alive))
end

-- 3. The dead are buried.
local before = head
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', live, '-inf', '(' .. text(now))) do leave(dead) end

-- 4.
if says == 'joins' then
    member = text(members)
    members, alive, since = members + 1, alive + 1, -1
    redis.call('ZADD', live, text(now + lives), member)
    redis.call('HSET', meta, 'b' .. member, '0')
    append(member, events)
elseif not redis.call('ZSCORE', live, member) then
    keep()
    return {'expired'}
elseif says == 'leaves' then
    leave(member)
    keep()
    return {'expired'}
else
    -- 5.
    if batch ~= '' and tonumber(batch) > tonumber(known[8]) then
        if now < opens then
            keep()
            return {'closed', text(opens - now)}
        end
        append(member, events)
        redis.call('HSET', meta, 'b' .. member, batch)
    end
    -- 6.
    redis.call('ZADD', live, text(now + lives), member)
end
if head ~= before then keep() end

-- 7.
if snapped_at ~= '' and tonumber(snapped_at) > snapped and tonumber(snapped_at) <= head then
    snapped = tonumber(snapped_at)
    redis.call('SET', snap, snapshot)
    redis.call('HSET', meta, 'snapped', text(snapped))
    redis.call('XTRIM', log, 'MINID', id(snapped))
end

-- 8.
local news = {'news', current, member, text(head), redis.call('XLEN', log)}
local first = redis.call('ZRANGE', live, 0, 0, 'WITHSCORES')
news[6] = text(math.max(0, tonumber(first[2]) - now))
if since < snapped then
    since = snapped
    news[7], news[8] = text(snapped), redis.call('GET', snap)
else
    news[7], news[8] = '', ''
end
news[9] = redis.call('XRANGE', log, '(' .. id(since), '+', 'COUNT', most)
return news

-- What a database needs for treelock: three tables, and two functions. `exchange_1` follows the eight rules of `machine/engine.rs`, one
-- after the other, as `memory.rs` does.
--
-- The tables are UNLOGGED. A server that crashes empties them, and a standby that is promoted has them empty: so what is lost is lost as
-- a whole, and rule 1 begins anew. A logged table whose commits are not flushed would lose its newest entries alone, and then two could
-- be let in; and a flush for each request would cost a thousand times what the request does.
--
-- The row of a namespace is locked for each call that writes: that is the order. A function that is VOLATILE, as these are, sees in each
-- statement what was committed before that statement began, if the transaction is READ COMMITTED. So what comes after the lock sees all.
SELECT pg_advisory_xact_lock(hashtextextended('treelock', 0));

CREATE SCHEMA IF NOT EXISTS treelock;

-- An order has a name, or there is none. `head`: the position of the last entry; `kept`: how many there are; `snapped`: that of the
-- snapshot; `opens`: when it takes batches; `lives`: the time to live; `members`: how many have joined; `alive`: how many sessions there
-- are; `listens`: until when a client may wait for an entry.
CREATE UNLOGGED TABLE IF NOT EXISTS treelock.namespaces (
    namespace text PRIMARY KEY,
    format int NOT NULL,
    identity text NOT NULL DEFAULT '',
    head bigint NOT NULL DEFAULT 0,
    kept bigint NOT NULL DEFAULT 0,
    snapped bigint NOT NULL DEFAULT 0,
    opens bigint NOT NULL DEFAULT 0,
    lives bigint NOT NULL DEFAULT 0,
    members bigint NOT NULL DEFAULT 0,
    alive bigint NOT NULL DEFAULT 0,
    listens bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

CREATE UNLOGGED TABLE IF NOT EXISTS treelock.entries (
    namespace text,
    position bigint,
    member bigint NOT NULL,
    key bigint NOT NULL,
    events bytea NOT NULL,
    PRIMARY KEY (namespace, position)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

CREATE UNLOGGED TABLE IF NOT EXISTS treelock.sessions (
    namespace text,
    member bigint,
    key bigint,
    ends bigint NOT NULL,
    PRIMARY KEY (namespace, member, key)
) WITH (fillfactor = 50);

CREATE UNLOGGED TABLE IF NOT EXISTS treelock.snapshots (
    namespace text PRIMARY KEY,
    position bigint NOT NULL,
    snapshot bytea NOT NULL
);

-- The server's time in microseconds.
CREATE OR REPLACE FUNCTION treelock.now_1() RETURNS bigint LANGUAGE sql VOLATILE
AS $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

-- Waits are told of new entries on this channel.
CREATE OR REPLACE FUNCTION treelock.channel_1(ns text) RETURNS text LANGUAGE sql IMMUTABLE
AS $$ SELECT 'treelock_' || md5(ns) $$;

-- Asks to be told of entries for so many microseconds; whether there is one already.
CREATE OR REPLACE FUNCTION treelock.listen_1(ns text, since bigint, during bigint) RETURNS boolean LANGUAGE plpgsql
AS $$
DECLARE
    newest bigint;
BEGIN
    UPDATE treelock.namespaces SET listens = greatest(listens, treelock.now_1() + during)
        WHERE namespace = ns RETURNING head INTO newest;
    RETURN newest IS DISTINCT FROM since;
END $$;

-- The exchange. `its_...` is what the client says, by names as in `engine.rs`; `one` is the row of the namespace.
CREATE OR REPLACE FUNCTION treelock.exchange_1(
    ns text,
    its_format int,
    its_fresh text,
    its_key bigint,
    its_lives bigint,
    says text,
    insists boolean,
    its_identity text,
    its_member bigint,
    since bigint,
    is_short boolean,
    renews boolean,
    wants_news boolean,
    batch bytea,
    snapshot_at bigint,
    its_snapshot bytea,
    most int,
    OUT answer text,
    OUT told bigint[],
    OUT identity text,
    OUT snapshot bytea,
    OUT positions bigint[],
    OUT members bigint[],
    OUT keys bigint[],
    OUT events bytea[]
)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    one treelock.namespaces;
    at_time bigint;
    is_whole boolean;
    goes_on boolean := says = 'goes on';
    looks boolean := says = 'looks';
    -- Where the entries begin that the client gets.
    first_position bigint;
    -- The session that the answer is for.
    own_member bigint := its_member;
    own_key bigint := its_key;
    first_end bigint := -1;
    dead record;
BEGIN
    answer := 'news';
    -- The short way: rules 5 and 8.
    IF is_short THEN
        IF batch IS NOT NULL THEN
            UPDATE treelock.namespaces SET head = greatest(head + 1, treelock.now_1()), kept = kept + 1
                WHERE namespace = ns AND identity <> '' AND format = its_format
                RETURNING * INTO one;
            IF FOUND THEN
                INSERT INTO treelock.entries VALUES (ns, one.head, its_member, its_key, batch);
                IF one.listens > one.head THEN
                    PERFORM pg_notify(treelock.channel_1(ns), '');
                END IF;
                IF NOT wants_news THEN
                    answer := 'written';
                    RETURN;
                END IF;
            END IF;
        END IF;
        SELECT array_agg(position), array_agg(member), array_agg(key), array_agg(events)
            INTO positions, members, keys, events
            FROM (SELECT * FROM treelock.entries WHERE namespace = ns AND position >= since ORDER BY position LIMIT most)
                AS entries;
        IF positions[1] = since AND (batch IS NULL OR one.namespace IS NOT NULL) THEN
            answer := 'entries';
            RETURN;
        END IF;
        -- Its batch is written again below, if it was written here.
    END IF;

    LOOP
        SELECT * INTO one FROM treelock.namespaces WHERE namespace = ns FOR UPDATE;
        EXIT WHEN FOUND OR looks;
        INSERT INTO treelock.namespaces (namespace, format) VALUES (ns, its_format) ON CONFLICT DO NOTHING;
    END LOOP;
    at_time := treelock.now_1();
    IF one.identity <> '' AND one.format <> its_format THEN
        answer := 'format';
        identity := one.format;
        RETURN;
    END IF;

    -- 1. The order is whole, or it begins anew.
    IF says = 'breaks' THEN
        is_whole := one.identity <> its_identity AND one.identity <> '';
    ELSE
        is_whole := one.identity <> ''
            AND one.alive = (SELECT count(*) FROM treelock.sessions WHERE namespace = ns)
            AND EXISTS (SELECT FROM treelock.entries WHERE namespace = ns AND position = one.head)
            AND EXISTS (SELECT FROM treelock.entries WHERE namespace = ns AND position = one.snapped)
            AND EXISTS (SELECT FROM treelock.snapshots WHERE namespace = ns AND position = one.snapped)
            AND (NOT goes_on OR its_identity <> one.identity OR since < one.snapped
                OR EXISTS (SELECT FROM treelock.entries WHERE namespace = ns AND position = since));
    END IF;
    IF is_whole IS NOT TRUE THEN
        IF looks THEN
            answer := 'none';
            RETURN;
        END IF;
        SELECT greatest(max(position), one.head) + 1 INTO one.head FROM treelock.entries WHERE namespace = ns;
        one.head := greatest(one.head, at_time, CASE WHEN goes_on THEN since + 1 END);
        DELETE FROM treelock.entries WHERE namespace = ns;
        DELETE FROM treelock.sessions WHERE namespace = ns;
        DELETE FROM treelock.snapshots WHERE namespace = ns;
        -- The first entry is nobody's.
        INSERT INTO treelock.entries VALUES (ns, one.head, -1, 0, '');
        INSERT INTO treelock.snapshots VALUES (ns, one.head, '');
        one.format := its_format;
        one.identity := its_fresh;
        one.kept := 1;
        one.snapped := one.head;
        one.lives := its_lives;
        one.opens := at_time + its_lives;
        one.members := 0;
        one.alive := 0;
        UPDATE treelock.namespaces SET format = one.format, identity = one.identity, snapped = one.snapped,
            lives = one.lives, opens = one.opens, members = 0, alive = 0, head = one.head, kept = one.kept
            WHERE namespace = ns;
    END IF;

    -- 2.
    IF says = 'breaks' OR (says IN ('goes on', 'leaves') AND its_identity <> one.identity) THEN
        answer := 'lost';
        RETURN;
    END IF;
    identity := one.identity;

    -- 3. The dead are buried, those first whose time ended first.
    IF renews THEN
        FOR dead IN SELECT * FROM treelock.sessions WHERE namespace = ns AND ends < at_time
            ORDER BY ends, (member::text || '.') COLLATE "C" LOOP
            one.head := greatest(one.head + 1, at_time);
            one.kept := one.kept + 1;
            one.alive := one.alive - 1;
            INSERT INTO treelock.entries VALUES (ns, one.head, dead.member, dead.key, '');
            DELETE FROM treelock.sessions WHERE namespace = ns AND member = dead.member AND key = dead.key;
        END LOOP;
    END IF;

    -- 4.
    IF says = 'joins' THEN
        IF one.alive = 0 THEN
            one.lives := its_lives;
        ELSIF insists AND one.lives <> its_lives THEN
            answer := 'lives';
            told := ARRAY[one.lives];
        END IF;
        IF answer = 'news' THEN
            own_member := one.members;
            one.members := one.members + 1;
            one.alive := one.alive + 1;
            one.head := greatest(one.head + 1, at_time);
            one.kept := one.kept + 1;
            INSERT INTO treelock.entries VALUES (ns, one.head, own_member, own_key, batch);
            INSERT INTO treelock.sessions VALUES (ns, own_member, own_key, 0);
        END IF;
    ELSIF NOT looks THEN
        IF NOT EXISTS (SELECT FROM treelock.sessions AS known
            WHERE known.namespace = ns AND known.member = its_member AND known.key = its_key) THEN
            answer := 'expired';
        ELSIF says = 'leaves' THEN
            answer := 'expired';
            one.head := greatest(one.head + 1, at_time);
            one.kept := one.kept + 1;
            one.alive := one.alive - 1;
            INSERT INTO treelock.entries VALUES (ns, one.head, its_member, its_key, '');
            DELETE FROM treelock.sessions AS known
                WHERE known.namespace = ns AND known.member = its_member AND known.key = its_key;
        -- 5.
        ELSIF batch IS NOT NULL AND at_time >= one.opens THEN
            one.head := greatest(one.head + 1, at_time);
            one.kept := one.kept + 1;
            INSERT INTO treelock.entries VALUES (ns, one.head, its_member, its_key, batch);
        END IF;
    END IF;

    IF answer = 'news' THEN
        -- 6.
        IF renews THEN
            UPDATE treelock.sessions AS known SET ends = at_time + one.lives
                WHERE known.namespace = ns AND known.member = own_member AND known.key = own_key;
            SELECT greatest(min(ends) - at_time, 0) INTO first_end FROM treelock.sessions WHERE namespace = ns;
        END IF;
        -- 7.
        IF snapshot_at > one.snapped AND snapshot_at <= one.head THEN
            UPDATE treelock.snapshots SET position = snapshot_at, snapshot = its_snapshot WHERE namespace = ns;
            WITH gone AS (DELETE FROM treelock.entries WHERE namespace = ns AND position < snapshot_at RETURNING 1)
                SELECT one.kept - count(*) INTO one.kept FROM gone;
            one.snapped := snapshot_at;
        END IF;
    END IF;

    IF NOT looks THEN
        UPDATE treelock.namespaces SET head = one.head, kept = one.kept, snapped = one.snapped, lives = one.lives,
            members = one.members, alive = one.alive
            WHERE namespace = ns;
        IF one.listens > at_time THEN
            PERFORM pg_notify(treelock.channel_1(ns), '');
        END IF;
    END IF;
    IF answer <> 'news' THEN
        RETURN;
    END IF;

    -- 8.
    IF since IS NULL OR since < one.snapped THEN
        SELECT known.snapshot INTO snapshot FROM treelock.snapshots AS known WHERE known.namespace = ns;
    END IF;
    first_position := greatest(since, one.snapped);
    SELECT array_agg(position), array_agg(member), array_agg(key), array_agg(events)
        INTO positions, members, keys, events
        FROM (SELECT * FROM treelock.entries WHERE namespace = ns AND position >= first_position ORDER BY position LIMIT most)
            AS entries;
    told := ARRAY[own_member, own_key, one.snapped, one.head, one.kept, first_end, one.lives, greatest(one.opens - at_time, 0)];
END $$;

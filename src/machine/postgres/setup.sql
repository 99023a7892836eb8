-- What a database needs for treelock: four tables, and some functions. `exchange_1` follows the eight rules of `machine/engine.rs`, one
-- after the other, as `memory.rs` does.
--
-- The tables are UNLOGGED. A server that crashes empties them, and a standby that is promoted has them empty: so what is lost is lost as
-- a whole, and rule 1 begins anew. A logged table whose commits are not flushed would lose its newest entries alone, and then two could
-- be let in; and a flush for each request would take longer than all the rest.
--
-- An advisory lock of the namespace is taken for each call that writes: that is the order. A function that is VOLATILE, as these are, sees
-- in each statement what was committed before that statement began, if the transaction is READ COMMITTED. So what comes after the lock
-- sees all. Most calls only add a row: to keep the place of the last entry in the row of the namespace is no faster, and leaves a dead
-- row each time.
SELECT pg_advisory_xact_lock(hashtextextended('treelock', 0));

CREATE SCHEMA IF NOT EXISTS treelock;

-- An order has a name, or there is none. `head`: the position of what was the last entry after the last `exchange_1`; `snapped`: that of
-- the snapshot; `opens`: when it takes batches; `lives`: the time to live; `members`: how many have joined; `alive`: how many
-- sessions there are; `listens`: until when a client may wait for an entry.
CREATE UNLOGGED TABLE IF NOT EXISTS treelock.namespaces (
    namespace text COLLATE "C" PRIMARY KEY,
    format int NOT NULL,
    identity text NOT NULL DEFAULT '',
    head bigint NOT NULL DEFAULT 0,
    snapped bigint NOT NULL DEFAULT 0,
    opens bigint NOT NULL DEFAULT 0,
    lives bigint NOT NULL DEFAULT 0,
    members bigint NOT NULL DEFAULT 0,
    alive bigint NOT NULL DEFAULT 0,
    listens bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

CREATE UNLOGGED TABLE IF NOT EXISTS treelock.entries (
    namespace text COLLATE "C",
    position bigint,
    member bigint NOT NULL,
    key bigint NOT NULL,
    events bytea NOT NULL,
    PRIMARY KEY (namespace, position)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

CREATE UNLOGGED TABLE IF NOT EXISTS treelock.sessions (
    namespace text COLLATE "C",
    member bigint,
    key bigint,
    ends bigint NOT NULL,
    PRIMARY KEY (namespace, member, key)
) WITH (fillfactor = 50);

CREATE UNLOGGED TABLE IF NOT EXISTS treelock.snapshots (
    namespace text COLLATE "C" PRIMARY KEY,
    position bigint NOT NULL,
    snapshot bytea NOT NULL
);

-- The server's time in microseconds.
CREATE OR REPLACE FUNCTION treelock.now_1() RETURNS bigint LANGUAGE sql VOLATILE
AS $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

-- The number of the advisory lock of a namespace.
CREATE OR REPLACE FUNCTION treelock.lock_1(ns text) RETURNS bigint LANGUAGE sql IMMUTABLE
AS $$ SELECT hashtextextended(ns, 7467) $$;

-- Waits are told of new entries on this channel.
CREATE OR REPLACE FUNCTION treelock.channel_1(ns text) RETURNS text LANGUAGE sql IMMUTABLE
AS $$ SELECT 'treelock_' || md5(ns) $$;

-- Asks to be told of entries for so many microseconds; whether there is one already.
CREATE OR REPLACE FUNCTION treelock.listen_1(ns text, since bigint, during bigint) RETURNS boolean LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(treelock.lock_1(ns));
    UPDATE treelock.namespaces SET listens = greatest(listens, treelock.now_1() + during) WHERE namespace = ns;
    RETURN since IS DISTINCT FROM (SELECT max(position) FROM treelock.entries WHERE namespace = ns);
END $$;

-- The short way: rule 5 alone. Whether the batch is written. Few expressions, since each is made ready in each transaction.
CREATE OR REPLACE FUNCTION treelock.write_1(
    ns text, its_format int, its_member bigint, its_key bigint, batch bytea
)
RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    is_awaited boolean;
BEGIN
    PERFORM pg_advisory_xact_lock(treelock.lock_1(ns));
    INSERT INTO treelock.entries
        SELECT ns, greatest((SELECT max(position) + 1 FROM treelock.entries WHERE namespace = ns),
            treelock.now_1()), its_member, its_key, batch
            FROM treelock.namespaces WHERE namespace = ns AND identity <> '' AND format = its_format
        RETURNING (SELECT listens FROM treelock.namespaces WHERE namespace = ns) > position INTO is_awaited;
    IF is_awaited THEN
        PERFORM pg_notify(treelock.channel_1(ns), '');
    END IF;
    RETURN is_awaited IS NOT NULL;
END $$;

-- The exchange, for what does not go the short way. `its_...` is what the client says, by names as in `engine.rs`; `one` is the row of the namespace.
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
    renews boolean,
    batch bytea,
    snapshot_at bigint,
    its_snapshot bytea,
    most bigint,
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
    newest bigint;
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
    PERFORM pg_advisory_xact_lock(treelock.lock_1(ns));
    at_time := treelock.now_1();
    SELECT * INTO one FROM treelock.namespaces WHERE namespace = ns;
    SELECT max(position) INTO newest FROM treelock.entries WHERE namespace = ns;
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
        one.head := greatest(newest + 1, one.head + 1, at_time, CASE WHEN goes_on THEN since + 1 END);
        DELETE FROM treelock.entries WHERE namespace = ns;
        DELETE FROM treelock.sessions WHERE namespace = ns;
        DELETE FROM treelock.snapshots WHERE namespace = ns;
        -- The first entry is nobody's.
        INSERT INTO treelock.entries VALUES (ns, one.head, -1, 0, '');
        INSERT INTO treelock.snapshots VALUES (ns, one.head, '');
        one.identity := its_fresh;
        one.snapped := one.head;
        one.lives := its_lives;
        one.opens := at_time + its_lives;
        one.members := 0;
        one.alive := 0;
        INSERT INTO treelock.namespaces (namespace, format, identity, head, snapped, opens, lives)
            VALUES (ns, its_format, its_fresh, one.head, one.head, one.opens, its_lives)
            ON CONFLICT (namespace) DO UPDATE SET format = its_format, identity = its_fresh, head = one.head,
                snapped = one.head, opens = one.opens, lives = its_lives, members = 0, alive = 0;
    ELSE
        one.head := newest;
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
            one.alive := one.alive - 1;
            INSERT INTO treelock.entries VALUES (ns, one.head, its_member, its_key, '');
            DELETE FROM treelock.sessions AS known
                WHERE known.namespace = ns AND known.member = its_member AND known.key = its_key;
        -- 5.
        ELSIF batch IS NOT NULL AND at_time >= one.opens THEN
            one.head := greatest(one.head + 1, at_time);
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
            DELETE FROM treelock.entries WHERE namespace = ns AND position < snapshot_at;
            one.snapped := snapshot_at;
        END IF;
    END IF;

    IF NOT looks THEN
        UPDATE treelock.namespaces SET head = one.head, snapped = one.snapped, lives = one.lives,
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
    told := ARRAY[own_member, own_key, one.snapped, one.head,
        (SELECT count(*) FROM treelock.entries WHERE namespace = ns), first_end, one.lives, greatest(one.opens - at_time, 0)];
END $$;

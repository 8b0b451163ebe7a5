-- Whose database this is, and which objects are to be deleted (docs/database.md, "Whose it is").

CREATE TABLE identity (
    one   BIGINT PRIMARY KEY NOT NULL CHECK (one = 1),
    -- SHA-256 of the realm CA's certificate, hexadecimal.
    realm TEXT NOT NULL
);

-- Objects of the store that no row names any more, or not yet: to be deleted unless a row names them.
CREATE TABLE doomed (
    object TEXT PRIMARY KEY NOT NULL,
    since  BIGINT NOT NULL
);

-- Names and sums of files under which other update clients know releases (docs/formats.md, "Channel files").

-- Pattern of the names, as os_@v.erofs; NULL without one.
ALTER TABLE products ADD COLUMN file_name TEXT;

CREATE TABLE release_files (
    product   TEXT NOT NULL,
    version   TEXT NOT NULL,
    sha256    BYTEA NOT NULL,
    sha1      BYTEA NOT NULL,
    md5       BYTEA NOT NULL,
    -- What was signed last: name of the file, fingerprint of the OpenPGP key, signature. NULL before the first time.
    name      TEXT,
    signed_by BYTEA,
    signature BYTEA,
    PRIMARY KEY (product, version),
    FOREIGN KEY (product, version) REFERENCES releases (product, version) ON DELETE CASCADE
);

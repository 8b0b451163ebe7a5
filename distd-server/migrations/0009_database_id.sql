-- Which database this is, 32 hexadecimal digits: the store says to which it belongs (docs/database.md, "Whose it is").

ALTER TABLE identity ADD COLUMN id TEXT;

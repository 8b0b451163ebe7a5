//! Grants, and the releases that manifests belong to.
//!
//! Table `grants`: rights of a group on a pattern of products and one of channels, and until when.

use std::collections::{BTreeMap, HashMap};

use distd_core::ManifestId;
use distd_core::bounds::{CAPABILITY_MANIFESTS_MAX, GRANTS_MAX};
use distd_core::fleet::{Audience, EVERYONE, Grant, ReleasePattern, Selector};
use distd_core::names::Name;
use serde_json::{Value, json};
use sqlx::any::AnyRow;
use sqlx::{Any, Transaction};

use super::audit::append;
use super::bulk::{padded, padded_len};
use super::groups::{begin_fleet, selector_of};
use super::row::{Columns, signed};
use super::{Db, DbError, UnixSeconds, failed};

/// One grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRow {
    /// Number that names the grant; never given twice.
    pub id: u64,
    /// The grant.
    pub grant: Grant,
    /// Time at which it was made; 0 when a migration made it.
    pub created: UnixSeconds,
    /// Label of the token that made it, or `migration`.
    pub created_by: String,
}

/// Result of making grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddGrants {
    /// The grants, in the order asked for. A grant that was there already is not made again.
    Added(Vec<GrantRow>),
    /// There is no such group.
    UnknownGroup,
    /// The group's selector has facts, which decide no rights.
    Facts,
    /// The realm would have more than [`GRANTS_MAX`] grants; nothing was changed.
    TooMany,
}

const COLUMNS: &str = "id, group_name, rights, product, channel, until, by_certificate, created, created_by";

fn read(row: &AnyRow) -> Result<GrantRow, sqlx::Error> {
    let channel = row.text_or_none("channel")?.map(|_| row.parsed("channel")).transpose()?;
    Ok(GrantRow {
        id: row.number("id")?,
        grant: Grant {
            group: row.parsed("group_name")?,
            rights: row.parsed("rights")?,
            releases: ReleasePattern { product: row.parsed("product")?, channel },
            until: row.number_or_none("until")?,
            by_certificate: row.number("by_certificate")? != 0,
        },
        created: row.time("created")?,
        created_by: row.text("created_by")?,
    })
}

/// A grant in the audit log.
fn details(grant: &Grant) -> Value {
    let Grant { group, rights, releases, until, by_certificate } = grant;
    json!({
        "group": group.to_string(),
        "rights": rights.to_string(),
        "releases": releases.to_string(),
        "until": until,
        "by_certificate": by_certificate,
    })
}

/// Ids of the grants that name a group.
pub(super) async fn grants_to(
    tx: &mut Transaction<'static, Any>,
    group: &Name,
) -> Result<Vec<u64>, sqlx::Error> {
    let rows = sqlx::query("SELECT id FROM grants WHERE group_name = $1 ORDER BY id")
        .bind(group.to_string())
        .fetch_all(&mut **tx)
        .await?;
    rows.iter().map(|row| row.number("id")).collect()
}

impl Db {
    /// Every grant, the first one first, also those that have ended.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn grants(&self) -> Result<Vec<GrantRow>, DbError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM grants ORDER BY id"));
        let rows = sqlx::query(sql).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the grants"))
    }

    /// Makes grants to one group in one transaction.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn add_grants(
        &self,
        group: &Name,
        wanted: &[Grant],
        by: &str,
        now: UnixSeconds,
    ) -> Result<AddGrants, DbError> {
        let what = "record the grants";
        let mut tx = begin_fleet(self).await?;
        if group.as_str() != EVERYONE {
            match selector_of(&mut tx, group).await.map_err(failed(what))? {
                None => return Ok(AddGrants::UnknownGroup),
                Some(selector) if selector.as_ref().is_some_and(Selector::uses_facts) => {
                    return Ok(AddGrants::Facts);
                }
                Some(_) => {}
            }
        }
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM grants ORDER BY id"));
        let rows = sqlx::query(sql).fetch_all(&mut *tx).await;
        let mut all: Vec<GrantRow> =
            rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed(what))?;
        let (mut added, mut made) = (Vec::with_capacity(wanted.len()), Vec::new());
        for grant in wanted {
            if let Some(row) = all.iter().find(|row| row.grant == *grant) {
                added.push(row.clone());
                continue;
            }
            if all.len() >= GRANTS_MAX {
                return Ok(AddGrants::TooMany);
            }
            let row = sqlx::query(
                "INSERT INTO grants (group_name, rights, product, channel, until, by_certificate, created, created_by) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id",
            )
            .bind(group.to_string())
            .bind(grant.rights.to_string())
            .bind(grant.releases.product.to_string())
            .bind(grant.releases.channel.as_ref().map(ToString::to_string))
            .bind(grant.until.map(signed))
            .bind(i64::from(grant.by_certificate))
            .bind(now)
            .bind(by.to_owned())
            .fetch_one(&mut *tx)
            .await;
            let id = row.and_then(|row| row.number("id")).map_err(failed(what))?;
            let row = GrantRow { id, grant: grant.clone(), created: now, created_by: by.to_owned() };
            made.push(row.clone());
            added.push(row.clone());
            all.push(row);
        }
        for row in &made {
            append(&mut tx, &self.acting.at(now), "grant.add", &row.id.to_string(), &details(&row.grant))
                .await
                .map_err(failed(what))?;
        }
        tx.commit().await.map_err(failed(what))?;
        self.note_fleet_change();
        Ok(AddGrants::Added(added))
    }

    /// Removes a grant; `false` when there is none of this id.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn remove_grant(&self, id: u64) -> Result<bool, DbError> {
        let what = "remove the grant";
        let Ok(id) = i64::try_from(id) else { return Ok(false) };
        let mut tx = begin_fleet(self).await?;
        let gone =
            sqlx::query(sqlx::AssertSqlSafe(format!("DELETE FROM grants WHERE id = $1 RETURNING {COLUMNS}")))
                .bind(id)
                .fetch_optional(&mut *tx)
                .await
                .and_then(|row| row.as_ref().map(read).transpose())
                .map_err(failed(what))?;
        let Some(gone) = gone else { return Ok(false) };
        append(&mut tx, &self.acting, "grant.remove", &gone.id.to_string(), &details(&gone.grant))
            .await
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        self.note_fleet_change();
        Ok(true)
    }

    /// The releases that each manifest belongs to: those that have it, and those that a patch set
    /// of this manifest leads to. A manifest that nothing names is left out. One statement for
    /// each 64 manifests.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn audiences(
        &self,
        manifests: &[ManifestId],
    ) -> Result<HashMap<ManifestId, Vec<Audience>>, DbError> {
        let what = "find the releases of manifests";
        let mut found: BTreeMap<(ManifestId, Name, String), Audience> = BTreeMap::new();
        for batch in manifests.chunks(CAPABILITY_MANIFESTS_MAX) {
            let sql = format!(
                "WITH wanted (manifest) AS (VALUES {}), named (manifest, product, version) AS (\
                 SELECT w.manifest, r.product, r.version FROM wanted w CROSS JOIN releases r \
                 WHERE r.manifest = w.manifest AND r.withdrawn IS NULL \
                 UNION SELECT w.manifest, r.product, r.version FROM wanted w CROSS JOIN patch_sets s \
                 CROSS JOIN releases r WHERE s.set_manifest = w.manifest AND r.manifest = s.to_manifest \
                 AND r.product = s.product AND r.withdrawn IS NULL) \
                 SELECT n.manifest AS manifest, n.product AS product, n.version AS version, '' AS channel FROM named n \
                 UNION SELECT n.manifest, n.product, n.version, c.channel FROM named n CROSS JOIN channels c \
                 WHERE c.product = n.product AND c.version = n.version \
                 UNION SELECT n.manifest, n.product, n.version, m.channel FROM named n CROSS JOIN channel_moves m \
                 WHERE m.product = n.product AND m.to_version = n.version \
                 UNION SELECT n.manifest, n.product, n.version, o.channel FROM named n CROSS JOIN rollouts o \
                 WHERE o.product = n.product AND o.version = n.version",
                self.engine.values(padded_len(batch), 1)
            );
            let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
            for manifest in padded(batch) {
                query = query.bind(manifest.as_bytes().to_vec());
            }
            let rows = query.fetch_all(&self.pool).await.map_err(failed(what))?;
            for row in &rows {
                let mut put = || -> Result<(), sqlx::Error> {
                    let manifest = ManifestId(row.hash("manifest")?);
                    let (product, version): (Name, String) = (row.parsed("product")?, row.text("version")?);
                    let audience = found
                        .entry((manifest, product.clone(), version))
                        .or_insert_with(|| Audience { product, channels: Default::default() });
                    if !row.text("channel")?.is_empty() {
                        audience.channels.insert(row.parsed("channel")?);
                    }
                    Ok(())
                };
                put().map_err(failed(what))?;
            }
        }
        // A device of a channel gets the versions that its rollout requires.
        for (product, channel, versions) in self.versions_required().await? {
            for ((_, of, version), audience) in &mut found {
                if *of == product && versions.iter().any(|required| required.as_str() == version) {
                    audience.channels.insert(channel.clone());
                }
            }
        }
        let mut audiences: HashMap<ManifestId, Vec<Audience>> = HashMap::new();
        for ((manifest, ..), audience) in found {
            audiences.entry(manifest).or_default().push(audience);
        }
        Ok(audiences)
    }
}

#[cfg(test)]
mod tests {
    use distd_core::fleet::Rights;
    use sqlx::{Executor, SqlSafeStr};

    use super::super::schema::migrator;
    use super::super::{Access, Engine};
    use super::*;

    /// Runs on PostgreSQL too, when the tests know a server.
    #[tokio::test]
    async fn a_realm_from_before_has_one_grant_and_a_new_one_has_none() {
        let product =
            "INSERT INTO products (name, cut_min, cut_avg, cut_max, created) VALUES ('os', 1, 2, 3, 4)";
        let node = |engine: Engine| {
            let key = if engine == Engine::Sqlite { "x'00'" } else { "decode('00', 'hex')" };
            format!(
                "INSERT INTO nodes (id, public_key, role, label, enrolled, cert_serial, cert_expires) \
                 VALUES ('0a', {key}, 'leaf', 'till', 1, '', 2)"
            )
        };
        let dir = tempfile::tempdir().expect("temporary directory");
        let server = std::env::var("DISTD_TEST_POSTGRES_URL").ok();
        let schema = format!("fleet_{}", std::process::id());
        for engine in [Engine::Sqlite, Engine::Postgres] {
            for (case, rows) in
                [("new", vec![]), ("node", vec![node(engine)]), ("product", vec![product.to_owned()])]
            {
                let address = match (engine, &server) {
                    (Engine::Sqlite, _) => format!("sqlite:{}", dir.path().join(case).display()),
                    (Engine::Postgres, None) => continue,
                    (Engine::Postgres, Some(server)) => {
                        on_server(server, &format!("CREATE DATABASE {schema}_{case}")).await;
                        format!("{}/{schema}_{case}", server.rsplit_once('/').expect("a URL").0)
                    }
                };
                let db = Db::connect(&address, Access::Write).await.expect("connects");
                let mut before = migrator(db.engine);
                before.migrations.to_mut().truncate(10);
                before.run(&db.pool).await.expect("the schema of before");
                for sql in rows {
                    db.pool.execute(sqlx::AssertSqlSafe(sql).into_sql_str()).await.expect("a row");
                }
                db.close().await;
                let db = Db::open(&address).await.expect("migrates");
                let grants = db.grants().await.expect("list");
                if case == "new" {
                    assert_eq!(grants, []);
                } else {
                    let [row] = &grants[..] else { panic!("one grant: {grants:?}") };
                    let everything = Grant {
                        group: EVERYONE.parse().expect("a name"),
                        rights: Rights::ALL,
                        releases: ReleasePattern::all(),
                        until: None,
                        by_certificate: true,
                    };
                    assert_eq!((&row.grant, row.created_by.as_str()), (&everything, "migration"));
                    assert!(db.remove_grant(row.id).await.expect("removed"));
                }
                db.close().await;
                // A later start makes none.
                let db = Db::open(&address).await.expect("opens");
                assert_eq!(db.grants().await.expect("list"), []);
                db.close().await;
                if let (Engine::Postgres, Some(server)) = (engine, &server) {
                    on_server(server, &format!("DROP DATABASE {schema}_{case}")).await;
                }
            }
        }
    }

    #[tokio::test]
    async fn a_patch_set_belongs_to_the_release_that_it_leads_to() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let db = Db::open(&format!("sqlite:{}", dir.path().join("db").display())).await.expect("opens");
        let hash = |n: u8| format!("x'{}'", hex::encode([n; 32]));
        let release = |version: &str, n: u8| {
            format!(
                "INSERT INTO releases (product, version, manifest, blake3, bytes, chunk_count, kind, created, \
                 created_by) VALUES ('os', '{version}', {0}, {0}, 1, 1, 'file', 1, 'ci')",
                hash(n)
            )
        };
        let channel = |channel: &str, version: &str| {
            format!(
                "INSERT INTO channels (product, channel, version, counter, updated) VALUES ('os', '{channel}', '{version}', 1, 1)"
            )
        };
        let set = format!(
            "INSERT INTO patch_sets (product, from_manifest, to_manifest, from_version, to_version, state, set_manifest, \
             requested_by, created) VALUES ('os', {}, {}, '1', '2', 'ready', {}, 'release', 1)",
            hash(1),
            hash(2),
            hash(3)
        );
        let product =
            "INSERT INTO products (name, cut_min, cut_avg, cut_max, created) VALUES ('os', 1, 2, 3, 4)";
        for sql in [
            product.to_owned(),
            release("1", 1),
            release("2", 2),
            channel("old", "1"),
            channel("stable", "2"),
            set,
        ] {
            db.pool.execute(sqlx::AssertSqlSafe(sql).into_sql_str()).await.expect("a row");
        }
        let name = |text: &str| -> Name { text.parse().expect("a name") };
        let found = db.audiences(&[ManifestId([3; 32]), ManifestId([1; 32])]).await.expect("read");
        let of = |channel: &str| vec![Audience { product: name("os"), channels: [name(channel)].into() }];
        assert_eq!(
            found,
            HashMap::from([(ManifestId([3; 32]), of("stable")), (ManifestId([1; 32]), of("old"))])
        );
        // A release on its way out belongs to nobody, and so does its patch set.
        db.pool.execute("UPDATE releases SET withdrawn = 5 WHERE version = '2'").await.expect("a row");
        assert_eq!(db.audiences(&[ManifestId([3; 32])]).await.expect("read"), HashMap::new());
        db.close().await;
    }

    async fn on_server(server: &str, sql: &str) {
        let db = Db::connect(server, Access::Write).await.expect("a server");
        db.pool.execute(sqlx::AssertSqlSafe(sql.to_owned()).into_sql_str()).await.expect("done");
        db.close().await;
    }
}

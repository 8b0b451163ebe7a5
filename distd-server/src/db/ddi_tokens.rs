//! Tokens of devices whose update client speaks hawkBit's DDI (docs/ddi.md), and the nodes that
//! they make.
//!
//! Table `ddi_tokens`: hash of the secret, the device or the number of devices that it is for, and
//! the channel that they follow.

use distd_core::NodeId;
use distd_core::api::label_texts;
use distd_core::fleet::LabelMap;
use distd_core::names::Name;
use serde_json::{Value, json};
use sqlx::any::AnyRow;
use sqlx::{Any, Transaction};

use super::api_tokens::token_id;
use super::audit::{Acting, Actor, append};
use super::ddi_actions::OPEN;
use super::ddi_devices::{DDI_KEY_PREFIX, DdiDeviceRow, find};
use super::row::{Columns, impossible, signed};
use super::{Db, DbError, UnixSeconds, failed};

/// A token of DDI devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DdiTokenRow {
    /// SHA-256 of its text.
    pub secret_sha256: [u8; 32],
    /// The device that it is for; `None` for a gateway token.
    pub controller: Option<String>,
    /// Product that its devices install.
    pub product: Name,
    /// Channel that they follow.
    pub channel: Name,
    /// Name that operators see.
    pub label: String,
    /// Labels of the devices that it lets in.
    pub labels: LabelMap,
    /// Devices that a gateway token may still let in.
    pub admits: u64,
    /// Time at which it was made.
    pub created: UnixSeconds,
    /// Time of its end; `None` without one.
    pub expires: Option<UnixSeconds>,
    /// Time of its revocation.
    pub revoked: Option<UnixSeconds>,
}

impl DdiTokenRow {
    /// Whether the token counts at `now`.
    pub fn is_valid(&self, now: UnixSeconds) -> bool {
        self.revoked.is_none() && self.expires.is_none_or(|end| end >= now)
    }

    /// The id under which operators know the token.
    pub fn id(&self) -> String {
        token_id(&self.secret_sha256)
    }
}

/// Result of recording a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutDdiToken {
    /// It is recorded; the node of its device, if it is for one.
    Made(Option<DdiDeviceRow>),
    /// There is no such channel.
    UnknownChannel,
}

/// Result of letting a device in with a gateway token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdmitDdi {
    /// The device has a node.
    Admitted(DdiDeviceRow),
    /// The token lets no further device in.
    UsedUp,
}

const COLUMNS: &str =
    "secret_sha256, controller, product, channel, label, labels, admits, created, expires, revoked";

fn read(row: &AnyRow) -> Result<DdiTokenRow, sqlx::Error> {
    let labels: Value = serde_json::from_str(&row.text("labels")?).map_err(|_| impossible("labels"))?;
    let labels = labels.as_object().ok_or_else(|| impossible("labels"))?.iter();
    let label = |(key, value): (&String, &Value)| Some((key.parse().ok()?, value.as_str()?.parse().ok()?));
    Ok(DdiTokenRow {
        secret_sha256: row.hash("secret_sha256")?,
        controller: row.text_or_none("controller")?,
        product: row.parsed("product")?,
        channel: row.parsed("channel")?,
        label: row.text("label")?,
        labels: labels.map(label).collect::<Option<_>>().ok_or_else(|| impossible("labels"))?,
        admits: row.number("admits")?,
        created: row.time("created")?,
        expires: row.time_or_none("expires")?,
        revoked: row.time_or_none("revoked")?,
    })
}

/// Makes a node for a device, with the labels of its token.
async fn make_node(
    tx: &mut Transaction<'static, Any>,
    node: &NodeId,
    controller: &str,
    token: &DdiTokenRow,
    now: UnixSeconds,
) -> Result<DdiDeviceRow, sqlx::Error> {
    let key = [DDI_KEY_PREFIX, &node.0].concat();
    sqlx::query(
        "INSERT INTO nodes (id, public_key, role, label, enrolled, cert_serial, cert_expires, revoked) \
         VALUES ($1, $2, 'leaf', $3, $4, '', 0, NULL)",
    )
    .bind(node.to_string())
    .bind(key)
    .bind(controller.to_owned())
    .bind(now)
    .execute(&mut **tx)
    .await?;
    for (key, value) in &token.labels {
        sqlx::query("INSERT INTO node_labels (node, source, key, value) VALUES ($1, 'token', $2, $3)")
            .bind(node.to_string())
            .bind(key.to_string())
            .bind(value.to_string())
            .execute(&mut **tx)
            .await?;
    }
    // A device whose node was revoked comes back as another node.
    sqlx::query("DELETE FROM ddi_devices WHERE controller = $1")
        .bind(controller.to_owned())
        .execute(&mut **tx)
        .await?;
    sqlx::query(
        "INSERT INTO ddi_devices (controller, node, product, channel, by_target, installed, failed, failed_at, \
         reports, attributes, auto_confirm) VALUES ($1, $2, $3, $4, $5, NULL, NULL, 0, 0, NULL, 0)",
    )
    .bind(controller.to_owned())
    .bind(node.to_string())
    .bind(token.product.to_string())
    .bind(token.channel.to_string())
    .bind(i64::from(token.controller.is_some()))
    .execute(&mut **tx)
    .await?;
    let made = find(&mut **tx, controller).await?;
    made.ok_or_else(|| impossible("controller"))
}

impl Db {
    /// Records a token. The device of a target token gets a node, `node`, unless it has one that is
    /// not revoked, and follows the channel of this token from now on.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn put_ddi_token(&self, token: &DdiTokenRow, node: &NodeId) -> Result<PutDdiToken, DbError> {
        let what = "record the DDI token";
        let mut tx = self.begin_write().await?;
        let known = sqlx::query("SELECT 1 FROM channels WHERE product = $1 AND channel = $2")
            .bind(token.product.to_string())
            .bind(token.channel.to_string())
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed(what))?;
        if known.is_none() {
            return Ok(PutDdiToken::UnknownChannel);
        }
        let labels = label_texts(&token.labels);
        let sql =
            format!("INSERT INTO ddi_tokens ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(token.secret_sha256.as_slice())
            .bind(token.controller.clone())
            .bind(token.product.to_string())
            .bind(token.channel.to_string())
            .bind(token.label.clone())
            .bind(json!(labels).to_string())
            .bind(signed(token.admits))
            .bind(token.created)
            .bind(token.expires)
            .bind(token.revoked)
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        let device = match &token.controller {
            None => None,
            Some(controller) => {
                Some(device_of(&mut tx, node, controller, token).await.map_err(failed(what))?)
            }
        };
        let details = json!({
            "target": token.controller, "product": token.product, "channel": token.channel, "label": token.label,
            "labels": labels, "admits": token.admits, "expires": token.expires,
            "node": device.as_ref().map(|device| device.node.to_string()),
        });
        let acting = self.acting.at(token.created);
        append(&mut tx, &acting, "ddi-token.make", &token.id(), &details).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        self.note_fleet_change();
        Ok(PutDdiToken::Made(device))
    }

    /// Lets a device in with a gateway token: it gets the node `node`.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn admit_ddi(
        &self,
        token: &DdiTokenRow,
        controller: &str,
        node: &NodeId,
        now: UnixSeconds,
    ) -> Result<AdmitDdi, DbError> {
        let what = "let the DDI device in";
        let mut tx = self.begin_write().await?;
        // The token's row is locked first: of two requests of a device one makes the node.
        let left = sqlx::query(
            "UPDATE ddi_tokens SET admits = admits - 1 WHERE secret_sha256 = $1 AND admits > 0 AND revoked IS NULL",
        )
        .bind(token.secret_sha256.as_slice())
        .execute(&mut *tx)
        .await
        .map_err(failed(what))?
        .rows_affected();
        if let Some(found) = find(&mut *tx, controller).await.map_err(failed(what))? {
            return Ok(AdmitDdi::Admitted(found));
        }
        if left == 0 {
            return Ok(AdmitDdi::UsedUp);
        }
        let device = make_node(&mut tx, node, controller, token, now).await.map_err(failed(what))?;
        let acting = Acting { actor: Actor::ddi_token(&token.id(), &token.label), at: now };
        let details = json!({"role": "leaf", "label": controller, "again": false, "ddi": true});
        append(&mut tx, &acting, "node.enrol", &node.to_string(), &details).await.map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))?;
        self.note_fleet_change();
        Ok(AdmitDdi::Admitted(device))
    }

    /// The token with this hash, valid or not.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn ddi_token(&self, secret_sha256: &[u8; 32]) -> Result<Option<DdiTokenRow>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM ddi_tokens WHERE secret_sha256 = $1");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(secret_sha256.as_slice());
        let row = row.fetch_optional(&self.pool).await;
        row.and_then(|row| row.as_ref().map(read).transpose()).map_err(failed("read the DDI token"))
    }

    /// Every token, newest first.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn ddi_tokens(&self) -> Result<Vec<DdiTokenRow>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM ddi_tokens ORDER BY created DESC, label, secret_sha256");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(failed("list the DDI tokens"))
    }

    /// Revokes a token; the time of the first revocation stays. The nodes of its devices stay.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn revoke_ddi_token(&self, secret_sha256: &[u8; 32], now: UnixSeconds) -> Result<(), DbError> {
        let what = "revoke the DDI token";
        let mut tx = self.begin_write().await?;
        sqlx::query("UPDATE ddi_tokens SET revoked = COALESCE(revoked, $1) WHERE secret_sha256 = $2")
            .bind(now)
            .bind(secret_sha256.as_slice())
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
        let id = token_id(secret_sha256);
        append(&mut tx, &self.acting.at(now), "ddi-token.revoke", &id, &json!({}))
            .await
            .map_err(failed(what))?;
        tx.commit().await.map_err(failed(what))
    }
}

/// The device of a target token.
async fn device_of(
    tx: &mut Transaction<'static, Any>,
    node: &NodeId,
    controller: &str,
    token: &DdiTokenRow,
) -> Result<DdiDeviceRow, sqlx::Error> {
    match find(&mut **tx, controller).await?.filter(|device| device.revoked.is_none()) {
        None => make_node(tx, node, controller, token, token.created).await,
        Some(device) => {
            if (&device.product, &device.channel) != (&token.product, &token.channel) {
                forget_channel(tx, &device.node, token.created).await?;
            }
            sqlx::query(
                "UPDATE ddi_devices SET product = $1, channel = $2, by_target = 1 WHERE controller = $3",
            )
            .bind(token.product.to_string())
            .bind(token.channel.to_string())
            .bind(controller.to_owned())
            .execute(&mut **tx)
            .await?;
            find(&mut **tx, controller).await?.ok_or_else(|| impossible("controller"))
        }
    }
}

/// Forgets what a device did in the channel that it followed before: of another product a version
/// of the same name is another release.
async fn forget_channel(
    tx: &mut Transaction<'static, Any>,
    node: &NodeId,
    now: UnixSeconds,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE ddi_devices SET installed = NULL, failed = NULL, failed_at = 0 WHERE node = $1")
        .bind(node.to_string())
        .execute(&mut **tx)
        .await?;
    let sql = format!("UPDATE ddi_actions SET state = 'canceled', changed = $1 WHERE node = $2 AND {OPEN}");
    let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(now).bind(node.to_string());
    query.execute(&mut **tx).await.map(drop)
}

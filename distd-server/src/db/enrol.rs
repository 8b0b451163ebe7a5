//! Enrolment of a node against a join token, and the certificates of nodes.

use serde_json::json;
use sqlx::{Any, Transaction};

use super::audit::{Acting, Actor, append};
use super::join_tokens::{self, JoinTokenRow};
use super::row::{Columns, signed};
use super::{Db, DbError, UnixSeconds, failed, labels};

const WHAT: &str = "enrol the node";

/// A node that asks to be let in by a token. Its signature has been verified.
#[derive(Clone, Copy, Debug)]
pub struct Enrolment<'a> {
    /// Ed25519 public key of the token, hexadecimal.
    pub token: &'a str,
    /// Node id, 32 hexadecimal digits.
    pub node: &'a str,
    /// The node's SubjectPublicKeyInfo, DER.
    pub public_key: &'a [u8],
    /// Role that the node asks for.
    pub role: &'a str,
    /// Name that operators see.
    pub label: &'a str,
    /// Time of the request.
    pub now: UnixSeconds,
}

/// The result of an enrolment. Nothing was changed unless it is [`Enrolled`](Self::Enrolled) or
/// [`EnrolledAgain`](Self::EnrolledAgain).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnrolOutcome {
    /// The node has a row, and the token has one use less.
    Enrolled(JoinTokenRow),
    /// The node had used this token before: its row has the new label and role, and the token keeps
    /// its uses.
    EnrolledAgain(JoinTokenRow),
    /// The node is revoked.
    NodeRevoked,
    /// The token gives another role.
    WrongRole,
    /// The token has no use left.
    UsedUp,
    /// The token has expired.
    Expired,
    /// The token is revoked.
    TokenRevoked,
    /// There is no such token.
    UnknownToken,
}

/// The result of [`Db::put_certificate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutCertificate {
    /// The node's row names the certificate.
    Recorded,
    /// The node is revoked: do not give it the certificate.
    NodeRevoked,
    /// There is no such node.
    UnknownNode,
}

/// Records that a node used a token, which has `uses_left` after that.
async fn take_use(
    tx: &mut Transaction<'static, Any>,
    wanted: &Enrolment<'_>,
    uses_left: u64,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE join_tokens SET uses_left = $1 WHERE public_key = $2")
        .bind(signed(uses_left))
        .bind(wanted.token.to_owned())
        .execute(&mut **tx)
        .await?;
    sqlx::query("INSERT INTO join_token_uses (token, node, used) VALUES ($1, $2, $3)")
        .bind(wanted.token.to_owned())
        .bind(wanted.node.to_owned())
        .bind(wanted.now)
        .execute(&mut **tx)
        .await
        .map(drop)
}

/// The token that a node used last, of those that it used.
async fn last_token(tx: &mut Transaction<'static, Any>, node: &str) -> Result<String, sqlx::Error> {
    let sql = "SELECT token FROM join_token_uses WHERE node = $1 ORDER BY used DESC, token LIMIT 1";
    sqlx::query(sql).bind(node.to_owned()).fetch_one(&mut **tx).await?.text("token")
}

impl Db {
    /// Enrols a node: checks the node and the token, takes a use of the token unless the node has
    /// taken one before, writes the node's row, and gives the node the token's labels in place of
    /// those of the token it enrolled with before, all in one transaction.
    ///
    /// A node that has a row keeps the time of its first enrolment and its last certificate.
    ///
    /// # Errors
    /// [`DbError::Query`]; nothing was changed then.
    pub async fn enrol(&self, wanted: &Enrolment<'_>) -> Result<EnrolOutcome, DbError> {
        // Anyone can sign with a token of their own making. Such a request must not take the lock
        // that SQLite has for all writers.
        if self.join_token(wanted.token).await?.is_none() {
            return Ok(EnrolOutcome::UnknownToken);
        }
        let mut tx = self.begin_write().await?;
        // The row of the node is locked first and the token's row second, as in a revocation of
        // both, so that PostgreSQL finds no deadlock. An outcome below that drops the transaction
        // takes this write back.
        let row = sqlx::query(
            "INSERT INTO nodes (id, public_key, role, label, enrolled, cert_serial, cert_expires, revoked) \
             VALUES ($1, $2, $3, $4, $5, '', 0, NULL) ON CONFLICT (id) DO UPDATE SET role = excluded.role, \
             label = excluded.label RETURNING revoked, cert_serial",
        )
        .bind(wanted.node.to_owned())
        .bind(wanted.public_key.to_vec())
        .bind(wanted.role.to_owned())
        .bind(wanted.label.to_owned())
        .bind(wanted.now)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(WHAT))?;
        if row.time_or_none("revoked").map_err(failed(WHAT))?.is_some() {
            return Ok(EnrolOutcome::NodeRevoked);
        }
        let has_certificate = !row.text("cert_serial").map_err(failed(WHAT))?.is_empty();
        let Some(mut token) = join_tokens::lock(&mut tx, wanted.token).await.map_err(failed(WHAT))? else {
            return Ok(EnrolOutcome::UnknownToken);
        };
        if token.role != wanted.role {
            return Ok(EnrolOutcome::WrongRole);
        }
        if token.revoked.is_some() {
            return Ok(EnrolOutcome::TokenRevoked);
        }
        if token.expires < wanted.now {
            return Ok(EnrolOutcome::Expired);
        }
        let used = sqlx::query("SELECT used FROM join_token_uses WHERE token = $1 AND node = $2")
            .bind(wanted.token.to_owned())
            .bind(wanted.node.to_owned())
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed(WHAT))?;
        let is_again = used.is_some();
        if !is_again {
            if token.uses_left == 0 {
                return Ok(EnrolOutcome::UsedUp);
            }
            token.uses_left -= 1;
            take_use(&mut tx, wanted, token.uses_left).await.map_err(failed(WHAT))?;
        }
        // An earlier token of the node must not bring its labels back.
        let last = last_token(&mut tx, wanted.node).await.map_err(failed(WHAT))?;
        let changed = match !is_again || last == wanted.token {
            true => {
                labels::take_from_token(&mut tx, wanted.node, wanted.token).await.map_err(failed(WHAT))?
            }
            false => false,
        };
        let acting = Acting {
            actor: Actor::join_token(&join_tokens::join_token_id(wanted.token), &token.label),
            at: wanted.now,
        };
        let details = json!({"role": wanted.role, "label": wanted.label, "again": is_again});
        append(&mut tx, &acting, "node.enrol", wanted.node, &details).await.map_err(failed(WHAT))?;
        tx.commit().await.map_err(failed(WHAT))?;
        // A node without a certificate is connected to nobody: no rights need a second look when a
        // batch of new nodes enrols.
        if changed && has_certificate {
            self.note_fleet_change();
        }
        Ok(if is_again { EnrolOutcome::EnrolledAgain(token) } else { EnrolOutcome::Enrolled(token) })
    }

    /// Records the certificate that a node is about to be given: its serial number, hexadecimal,
    /// and its end. All other columns of the node stay as they are.
    ///
    /// # Errors
    /// [`DbError::Query`].
    pub async fn put_certificate(
        &self,
        node: &str,
        serial: &str,
        expires: UnixSeconds,
    ) -> Result<PutCertificate, DbError> {
        let done = sqlx::query(
            "UPDATE nodes SET cert_serial = $1, cert_expires = $2 WHERE id = $3 AND revoked IS NULL",
        )
        .bind(serial.to_owned())
        .bind(expires)
        .bind(node.to_owned())
        .execute(&self.pool)
        .await
        .map_err(failed("record the certificate of the node"))?;
        if done.rows_affected() == 1 {
            return Ok(PutCertificate::Recorded);
        }
        // Nodes are never deleted: a row that is there now was revoked before.
        Ok(match self.node(node).await? {
            Some(_) => PutCertificate::NodeRevoked,
            None => PutCertificate::UnknownNode,
        })
    }
}

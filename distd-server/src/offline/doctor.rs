//! Examination of an origin: what keeps it from its work, and how that is mended. Nothing is
//! changed, and the origin may run.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use distd_core::error::Chain;
use distd_peer::clock::unix_now;
use distd_peer::doctor::Examination;
use distd_peer::net::{Outbound, Transport, exchange_enroll};
use distd_peer::trust::identity::certificate_from_pem;
use distd_peer::trust::tls::{TrustAnchor, https_client};
use distd_peer::trust::tuf::wire::end_of;

use super::{is_origin, metadata_in};
use crate::config::Settings;
use crate::db::{Db, DbError};
use crate::origin::Places;
use crate::realm::ca_end;
use crate::store::{Store, directory_of};
use crate::tuf::{MetadataStore, expires_after};

/// Longest wait for an answer of the origin.
const WAIT: Duration = Duration::from_secs(8);

/// Time before the end of the timestamp in which a running origin has failed to sign it again: it
/// does so when 8 of its 24 hours are left.
const TIMESTAMP_LATE: u64 = 6 * 3600;

/// Time before the end of the root in which people should act.
const ROOT_LATE: u64 = 60 * 24 * 3600;

/// Time before the end of the CA's certificate in which people should act.
const CA_LATE: u64 = 90 * 24 * 3600;

/// Free bytes above the reserve that an origin needs: one pack and the database.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// Difference of two clocks that is no finding, seconds.
const CLOCK_SECONDS: u64 = 60;

/// Examines the origin of these settings. `config` is their file.
pub async fn doctor(settings: &Settings, config: Option<&Path>) -> Examination {
    let mut found = Examination::default();
    let places = settings.places();
    found.sound("version", format!("distd-server {}", env!("CARGO_PKG_VERSION")));
    if !has_origin(&mut found, &places.data) {
        return found;
    }
    found.rights(secrets(settings, config));
    found.disk(&places.data, FREE_BYTES_MIN);
    if let Some(directory) = directory_of(&places.store) {
        found.disk(&directory, FREE_BYTES_MIN);
    }
    let names: Vec<String> =
        settings.name.iter().map(|name| format!("{name}:{}", settings.http.port())).collect();
    found.names(&names).await;
    certificate(&mut found, &places.data);
    database(&mut found, &places.db).await;
    metadata(&mut found, &places).await;
    running(&mut found, settings, &places.data).await;
    found
}

/// Asks the origin of these settings alone whether it answers, for a health check that is repeated.
pub async fn answers(settings: &Settings) -> Examination {
    let mut found = Examination::default();
    if has_origin(&mut found, &settings.data) {
        running(&mut found, settings, &settings.data).await;
    }
    found
}

/// Checks that a data directory is an origin's.
fn has_origin(found: &mut Examination, data: &Path) -> bool {
    let is_origin = is_origin(data);
    if !is_origin {
        found.finding(
            "data",
            format!("{} holds no origin", data.display()),
            "give --data the directory that distd-server serve uses, and run this as its user",
        );
    }
    is_origin
}

/// Files and directories that hold secrets.
fn secrets(settings: &Settings, config: Option<&Path>) -> Vec<PathBuf> {
    let data = &settings.data;
    let mut secrets = vec![data.clone()];
    secrets.extend(["admin.token", "distd.sqlite", "realm/origin.key"].map(|name| data.join(name)));
    secrets.extend(settings.oidc.clone());
    // The address of a database has a password.
    secrets.extend(config.filter(|_| settings.db.contains('@')).map(Path::to_owned));
    for directory in [settings.keys.join("tuf-keys"), settings.keys.join("realm")] {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        // Certificates and public keys are for everybody.
        let is_secret = |path: &PathBuf| {
            !path.extension().is_some_and(|end| end == "pem" || end == "pub" || end == "json")
        };
        let files =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file() && is_secret(path));
        secrets.extend(files);
    }
    secrets.sort();
    secrets.dedup();
    secrets
}

fn certificate(found: &mut Examination, data: &Path) {
    let path = data.join("realm/ca.pem");
    let end = std::fs::read_to_string(&path).map(|pem| ca_end(&pem)).unwrap_or(0);
    let left = end.saturating_sub(unix_now());
    if end == 0 {
        found.finding(
            "certificate",
            format!("{} holds no certificate", path.display()),
            "restore it from a backup: a new one would lock every node out",
        );
    } else if left < CA_LATE {
        found.finding(
            "certificate",
            format!("the CA's certificate ends in {} days", left / (24 * 3600)),
            "distd-server keys renew-ca, give ca.pem to the users of the HTTP API, and restart the origin",
        );
    } else {
        found.sound("certificate", format!("the CA's is valid for {} days more", left / (24 * 3600)));
    }
}

async fn database(found: &mut Examination, address: &str) {
    let db = match Db::open_read_only(address).await {
        Ok(db) => db,
        Err(error) => {
            let mend = match &error {
                DbError::OtherVersion { .. } => {
                    "start the origin of this version once, which brings it up to date"
                }
                DbError::TooNew { .. } => "use the version of distd-server that wrote the schema",
                _ => "check that the database runs, that --db is right, and that this user may read it",
            };
            return found.finding("database", Chain(&error).to_string(), mend);
        }
    };
    match tokio::try_join!(db.ping(), db.delivery_counts(), db.webhooks()) {
        Ok(((), (_, given_up), webhooks)) => {
            found.sound("database", "it answers");
            let failing = webhooks.iter().filter(|hook| hook.failing.is_some()).count();
            if given_up > 0 || failing > 0 {
                found.finding(
                    "webhooks",
                    format!("{failing} of {} fail, and {given_up} events were given up", webhooks.len()),
                    "distd webhook ls names the errors; mend the receiver, then distd webhook retry ID",
                );
            } else {
                found.sound("webhooks", format!("{} are registered", webhooks.len()));
            }
        }
        Err(error) => found.finding(
            "database",
            Chain(&error).to_string(),
            "look at the database's own log; SQLite: is the disk full or read-only?",
        ),
    }
    db.close().await;
}

async fn metadata(found: &mut Examination, places: &Places) {
    let now = unix_now();
    let store = match Store::open(&places.store) {
        Ok(store) => store,
        Err(error) => {
            return found.finding("store", Chain(&error).to_string(), "correct --store, or its credentials");
        }
    };
    if let Err(error) = store.check().await {
        return found.finding(
            "store",
            Chain(&error).to_string(),
            "check that the store answers, and that this user may read it",
        );
    }
    found.sound("store", "it answers");
    let metadata = match metadata_in(store).await {
        Ok(Some(metadata)) => metadata,
        Ok(None) => {
            return found.finding(
                "metadata",
                "the store has no signed metadata",
                "restore it, or run fsck --repair",
            );
        }
        Err(error) => return found.finding("metadata", Chain(&error).to_string(), "see the store above"),
    };
    let timestamp = metadata.get("timestamp.json").await.ok().flatten().and_then(|json| end_of(&json));
    let Some(end) = timestamp else {
        return found.finding("metadata", "timestamp.json cannot be read", "restore it from a backup");
    };
    // It was signed a day before its end.
    let signed_at = end.saturating_sub(expires_after("timestamp", 0));
    if signed_at > now.saturating_add(CLOCK_SECONDS) {
        found.finding(
            "clock",
            format!(
                "this origin signed metadata {} s after the time that its clock shows now",
                signed_at - now
            ),
            "set the clock and keep it right: timedatectl set-ntp true, or chrony",
        );
    } else {
        found.sound("clock", "not behind the newest signature");
    }
    if end <= now {
        found.finding(
            "metadata",
            format!("the timestamp ended {} s ago: devices refuse it", now - end),
            "start the origin; if it runs, look for \"maintenance failed\" in its log, and at the clock",
        );
    } else if end - now < TIMESTAMP_LATE {
        found.finding(
            "metadata",
            format!("the timestamp ends in {} s and was not signed again", end - now),
            "start the origin; if it runs, look for \"maintenance failed\" in its log",
        );
    } else {
        found.sound("metadata", format!("the timestamp is valid for {} s more", end - now));
    }
    let mut newest = None;
    for version in 1u64.. {
        match metadata.get(&format!("{version}.root.json")).await {
            Ok(Some(json)) => newest = end_of(&json),
            _ => break,
        }
    }
    match newest {
        Some(end) if end.saturating_sub(now) < ROOT_LATE => found.finding(
            "root",
            format!("the TUF root ends in {} days", end.saturating_sub(now) / (24 * 3600)),
            "sign root-next.json where the root keys are (distd-server root show), or start the origin",
        ),
        Some(end) => found.sound("root", format!("valid for {} days more", (end - now) / (24 * 3600))),
        None => found.finding("root", "no root can be read", "restore the store from a backup"),
    }
}

/// Asks the running origin over TCP and over UDP.
async fn running(found: &mut Examination, settings: &Settings, data: &Path) {
    let here = |mut address: SocketAddr| {
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        address
    };
    let pem = std::fs::read(data.join("realm/ca.pem")).unwrap_or_default();
    // The check of the certificate names this too, where it is made.
    let Ok(ca) = certificate_from_pem(&pem) else {
        let says = format!("{} holds no certificate", data.join("realm/ca.pem").display());
        return found.finding("running", says, "restore it from a backup");
    };
    let anchor = TrustAnchor::Ca(ca);
    let (http, quic) = (here(settings.http), here(settings.quic));
    let scheme = if settings.http_plain { "http" } else { "https" };
    let mut tls = https_client(&anchor);
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().timeout(WAIT).build();
    let answer = match client {
        Ok(client) => client.get(format!("{scheme}://{http}/readyz")).send().await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) if answer.status().is_success() => {
            found.sound("running", format!("{http} answers that it is ready"));
        }
        Ok(answer) => {
            let body = answer.text().await.unwrap_or_default();
            let says =
                format!("{http} answers that it is not ready: {}", distd_core::text::shown(&body, 400));
            found.finding("running", says, "see the parts that are not ok; the log has the causes");
        }
        Err(error) => {
            found.finding(
                "running",
                format!("no origin answers at {http}: {}", Chain(&error)),
                "systemctl start distd-server, and look at its log; --http names another address",
            );
            return;
        }
    }
    // An empty message is no enrolment, so it is refused: that is an answer.
    let outbound = Outbound::direct(Transport::Quic);
    let quic = quic.to_string();
    let asked = exchange_enroll(&quic, &anchor, &outbound, &[]);
    match tokio::time::timeout(WAIT, asked).await {
        Ok(Ok(_)) => found.sound("udp", format!("{quic} answers over UDP")),
        Ok(Err(error)) if is_answer(&error) => found.sound("udp", format!("{quic} answers over UDP")),
        Ok(Err(error)) => found.finding(
            "udp",
            format!("{quic} does not answer over UDP: {}", Chain(&error)),
            "let UDP to this port through the firewall of this machine; --quic names another address",
        ),
        Err(_) => found.finding(
            "udp",
            format!("{quic} does not answer over UDP"),
            "let UDP to this port through the firewall of this machine; --quic names another address",
        ),
    }
}

/// Whether a failed exchange reached the origin.
fn is_answer(error: &distd_peer::net::EnrollError) -> bool {
    matches!(error, distd_peer::net::EnrollError::Wire(..))
}

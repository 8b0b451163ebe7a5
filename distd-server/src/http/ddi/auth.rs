//! Authorisation of DDI devices by target tokens and gateway tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use distd_core::NodeId;
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use distd_peer::listener::Authenticated;
use distd_peer::random;
use distd_peer::trust::token::sha256;

use super::DdiOptions;
use crate::db::{AdmitDdi, DdiDeviceRow, DdiTokenRow};
use crate::http::{ApiError, App};
use crate::origin::signed;

/// Longest token that is looked at, bytes.
const TOKEN_BYTES_MAX: usize = 200;

/// Longest id of a device, bytes.
pub(super) const CONTROLLER_BYTES_MAX: usize = 100;

/// Whether a text is the id of a device: letters, digits and `._:@+-`, which are themselves in an
/// address.
pub(super) fn is_controller(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '@' | '+' | '-');
    (1..=CONTROLLER_BYTES_MAX).contains(&text.len()) && text.chars().all(allowed)
}

/// A device that has shown a valid token.
pub(super) struct DdiCaller {
    /// The device.
    pub(super) device: DdiDeviceRow,
    /// Settings of the interface.
    pub(super) options: DdiOptions,
    /// Address of the device, with which hrefs begin.
    pub(super) base: String,
    params: BTreeMap<String, String>,
}

impl DdiCaller {
    /// A variable part of the address; empty when it has none of this name.
    pub(super) fn param(&self, name: &str) -> &str {
        self.params.get(name).map_or("", String::as_str)
    }
}

/// The valid token in the header of a request, and whether it was shown as a target token.
async fn token_of(app: &App, headers: &HeaderMap) -> Result<Option<(DdiTokenRow, bool)>, ApiError> {
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, secret)) = header.and_then(|text| text.split_once(' ')) else { return Ok(None) };
    let as_target = match scheme {
        _ if scheme.eq_ignore_ascii_case("TargetToken") => true,
        _ if scheme.eq_ignore_ascii_case("GatewayToken") => false,
        _ => return Ok(None),
    };
    let secret = secret.trim();
    if secret.len() > TOKEN_BYTES_MAX {
        return Ok(None);
    }
    // The lookup is by hash, so its duration reveals nothing about any secret.
    let token = app.origin.db().ddi_token(&sha256(secret.as_bytes())).await?;
    let now = signed(unix_now());
    let fits = |token: &DdiTokenRow| token.is_valid(now) && token.controller.is_some() == as_target;
    Ok(token.filter(fits).map(|token| (token, as_target)))
}

/// The device for which a token speaks; one that is new is let in when the token allows that.
async fn device_of(
    app: &App,
    token: &DdiTokenRow,
    controller: &str,
) -> Result<Option<DdiDeviceRow>, ApiError> {
    let db = app.origin.db();
    // A token speaks for devices of its channel: a device that was moved to another one needs the
    // token that moved it.
    let is_of_channel =
        |device: &DdiDeviceRow| (&device.product, &device.channel) == (&token.product, &token.channel);
    if let Some(named) = &token.controller {
        let found = if named == controller { db.ddi_device(controller).await? } else { None };
        return Ok(found.filter(is_of_channel));
    }
    let found = match db.ddi_device(controller).await? {
        Some(found) => found,
        None if token.admits == 0 => return Ok(None),
        None => {
            let node = NodeId(random::bytes());
            match db.admit_ddi(token, controller, &node, signed(unix_now())).await? {
                AdmitDdi::UsedUp => return Ok(None),
                AdmitDdi::Admitted(device) => {
                    tracing::info!(controller, node = %device.node, token = token.id(), "a DDI device was let in");
                    device
                }
            }
        }
    };
    // A gateway does not speak for a device that has a token of its own.
    Ok(Some(found).filter(|device| !device.by_target && is_of_channel(device)))
}

impl FromRequestParts<Arc<App>> for DdiCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let nothing = || ApiError::not_found("such address");
        let options = app.ddi.clone().ok_or_else(nothing)?;
        let Path(params) =
            Path::<BTreeMap<String, String>>::from_request_parts(parts, app).await.map_err(|_| nothing())?;
        let part = |name: &str| params.get(name).map_or("", String::as_str);
        // The tenant is repeated in hrefs, and means nothing else here.
        let (tenant, controller) = (part("tenant"), part("controller"));
        if tenant.parse::<Name>().is_err() || !is_controller(controller) {
            return Err(nothing());
        }
        let (token, _) = token_of(app, &parts.headers).await?.ok_or_else(ApiError::unauthorised_device)?;
        let device = device_of(app, &token, controller).await?.filter(|device| device.revoked.is_none());
        let device = device.ok_or_else(ApiError::unauthorised_device)?;
        if let Some(authenticated) = parts.extensions.get::<Authenticated>() {
            authenticated.set();
        }
        let base = format!("{}/{tenant}/controller/v1/{controller}", options.url);
        Ok(Self { device, options, base, params })
    }
}

#[cfg(test)]
mod tests {
    use distd_core::cut::CutParams;
    use distd_core::{ArtifactHash, ManifestId};

    use super::*;
    use crate::db::{ChannelRow, ReleaseRow, Restoration};
    use crate::http::HttpOptions;
    use crate::origin::{Origin, Places, Tuning};

    #[tokio::test]
    async fn a_token_speaks_for_devices_of_its_channel() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let places = Places::in_dir(directory.path());
        let origin = Origin::open(&places, Tuning::default()).await.expect("an origin");
        let (name, db) = (|text: &str| text.parse::<Name>().expect("a name"), origin.db());
        for (number, product) in [(1, "os"), (2, "app")] {
            let (product, version) = (name(product), name("1"));
            let release = ReleaseRow {
                product: product.clone(),
                version: version.clone(),
                manifest: ManifestId([number; 32]),
                blake3: ArtifactHash([number; 32]),
                bytes: 1,
                chunk_count: 1,
                kind: "file".to_owned(),
                created: 1,
                created_by: String::new(),
                published: None,
                sequence: 1,
            };
            let rows = Restoration::default();
            db.restore_release(&release, CutParams::default(), &rows).await.expect("a release");
            let (channel, counter, updated) = (name("stable"), 1, 1);
            let row = ChannelRow { product, channel, version, counter, updated, downgrade_from: None };
            db.take_over_channel(&row, 1).await.expect("a channel");
        }
        let app = App::new(origin.clone(), Arc::default(), HttpOptions::default());
        let token = |secret: &str, product: &str, controller: Option<&str>| DdiTokenRow {
            secret_sha256: sha256(secret.as_bytes()),
            controller: controller.map(str::to_owned),
            product: name(product),
            channel: name("stable"),
            label: String::new(),
            labels: Default::default(),
            admits: 0,
            created: 1,
            expires: None,
            revoked: None,
        };
        let shown = async |scheme: &str, secret: &str| {
            let header = format!("{scheme} {secret}").parse().expect("a header");
            token_of(&app, &HeaderMap::from_iter([(AUTHORIZATION, header)])).await.expect("asked")
        };
        let device = async |token: &DdiTokenRow| device_of(&app, token, "till").await.expect("asked");
        let (first, gateway) = (token("first", "os", Some("till")), token("gateway", "os", None));
        db.put_ddi_token(&first, &NodeId([1; 16])).await.expect("made");
        db.put_ddi_token(&gateway, &NodeId([2; 16])).await.expect("made");
        assert!(shown("TargetToken", "first").await.is_some_and(|(_, as_target)| as_target));
        assert!(shown("gatewaytoken", "gateway").await.is_some_and(|(_, as_target)| !as_target));
        for (scheme, secret) in [("GatewayToken", "first"), ("TargetToken", "other"), ("Bearer", "first")] {
            assert!(shown(scheme, secret).await.is_none(), "{scheme} {secret}");
        }
        let till = device(&first).await.expect("the device of the token");
        assert!(device(&gateway).await.is_none(), "it has a token of its own");
        assert!(device_of(&app, &first, "other").await.expect("asked").is_none());
        db.set_ddi_installed(&till.node, Some(&name("1")), None).await.expect("noted");
        // Another token moves the device to another product: the first one does not speak for it
        // any more, and what it installed there means nothing here.
        let second = token("second", "app", Some("till"));
        db.put_ddi_token(&second, &NodeId([3; 16])).await.expect("made");
        assert!(device(&first).await.is_none());
        let moved = device(&second).await.expect("the device");
        assert_eq!((moved.node, moved.installed), (till.node, None));
        db.revoke_ddi_token(&sha256(b"gateway"), 2).await.expect("revoked");
        assert!(shown("GatewayToken", "gateway").await.is_none());
    }

    #[test]
    fn ids_of_devices_stand_in_an_address_as_they_are() {
        for good in ["a", "device-1", "52:54:00:ab:cd:ef", "a@b+c", &"x".repeat(100)] {
            assert!(is_controller(good), "{good}");
        }
        for bad in ["", "a/b", "a b", "a%2f", "ü", "a?b", "a#b", &"x".repeat(101)] {
            assert!(!is_controller(bad), "{bad}");
        }
    }
}

//! Style, scripts and pictures of the page, built into the program.

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

/// An asset: its name, media type and bytes. A name has the version of its contents, so a browser
/// keeps it for good.
struct Asset {
    name: &'static str,
    media: &'static str,
    bytes: &'static [u8],
}

macro_rules! asset {
    ($name:literal, $file:literal, $media:literal) => {
        Asset { name: $name, media: $media, bytes: include_bytes!(concat!("../../../static/", $file)) }
    };
}

const ASSETS: [Asset; 4] = [
    asset!("style-1.css", "style.css", "text/css; charset=utf-8"),
    asset!("live-1.js", "live.js", "text/javascript; charset=utf-8"),
    asset!("htmx-4.0.1.min.js", "htmx-4.0.1.min.js", "text/javascript; charset=utf-8"),
    asset!("icon-1.svg", "icon.svg", "image/svg+xml"),
];

pub(super) async fn send(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|asset| asset.name == name) {
        Some(asset) => {
            let headers = [
                (header::CONTENT_TYPE, asset.media),
                (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
            ];
            (headers, asset.bytes).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// A browser keeps an asset for a year: changed contents need another name.
    #[test]
    fn an_asset_that_changes_gets_another_name() {
        let mut said = String::new();
        for asset in &ASSETS {
            let hash = blake3::hash(asset.bytes).to_hex();
            let _ = writeln!(said, "{} {}", asset.name, &hash[..16]);
        }
        let committed = include_str!("../../../static/names.txt");
        assert_eq!(
            said, committed,
            "give the changed asset another number, and note its hash in static/names.txt"
        );
    }
}

//! Address of a request, and the token that the request shows.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use distd_core::bounds::NAME_BYTES_MAX;
use distd_core::names::{Name, Wanted};
use http::{HeaderMap, header};

use super::casync::CasyncId;

/// Name of the store in which casync looks for the chunks of an index, beside the index.
const STORE: &str = "default.castr";

/// Most bytes of a path that is read, before its percent signs are decoded.
const PATH_BYTES_MAX: usize = 4096;

/// Release of a product as an address names it. A name that is a channel's means the channel, also
/// where a release has the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Product.
    pub product: Name,
    /// Channel or version.
    pub name: Name,
}

impl Reference {
    /// The channel of this name.
    pub fn channel(&self) -> Wanted {
        Wanted::Channel { product: self.product.clone(), channel: self.name.clone() }
    }

    /// The release of this version.
    pub fn release(&self) -> Wanted {
        Wanted::Release { product: self.product.clone(), version: self.name.clone() }
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.product, self.name)
    }
}

/// Address of a file of a release: `/r/PRODUCT/{VERSION|CHANNEL}/NAME`, or of a chunk for casync:
/// `/r/PRODUCT/{VERSION|CHANNEL}/default.castr/ABCD/ABCD….cacnk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Release.
    pub reference: Reference,
    /// Part of the release.
    pub item: Item,
}

/// Part of a release that has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A file.
    File(Name),
    /// A chunk for casync, by its SHA-512/256.
    Chunk([u8; 32]),
}

/// Reasons why a path is no address of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The path has another form.
    #[error("an address here is /r/PRODUCT/VERSION/NAME or /r/PRODUCT/CHANNEL/NAME")]
    Form,
    /// A part of the path is no name.
    #[error("{part:?} is no name: {cause}")]
    Name {
        /// The part, at most as long as a name.
        part: String,
        /// Reason.
        cause: distd_core::names::NameError,
    },
}

impl Address {
    /// Reads the path of a request, without its query. Returns the address, and the token that
    /// stands before it as `/t/TOKEN`: some updaters send neither headers nor queries.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn of_path(path: &str) -> Result<(Self, Option<String>), AddressError> {
        if path.len() > PATH_BYTES_MAX {
            return Err(AddressError::Form);
        }
        let path = decoded(path).ok_or(AddressError::Form)?;
        let mut parts: Vec<&str> = path.split('/').collect();
        let mut token = None;
        if let ["", "t", shown, ..] = parts[..] {
            token = Some(shown.to_owned());
            parts.drain(1..3);
        }
        let (["", "r", product, name, file] | ["", "r", product, name, STORE, _, file]) = parts[..] else {
            return Err(AddressError::Form);
        };
        let name_of = |part: &str| {
            part.parse::<Name>().map_err(|cause| {
                let part = part.chars().take(NAME_BYTES_MAX).collect();
                AddressError::Name { part, cause }
            })
        };
        let reference = Reference { product: name_of(product)?, name: name_of(name)? };
        let item = match parts[..] {
            [.., group, chunk] if parts.len() == 7 => Item::Chunk(chunk_id(group, chunk)?),
            _ => Item::File(name_of(file)?),
        };
        Ok((Self { reference, item }, token))
    }
}

/// Name of a chunk in casync's store: a group of four digits, and all of them with a suffix.
fn chunk_id(group: &str, chunk: &str) -> Result<CasyncId, AddressError> {
    let digits =
        chunk.strip_suffix(".cacnk").filter(|digits| digits.len() == 64 && digits.starts_with(group));
    let mut id = [0; 32];
    hex::decode_to_slice(digits.ok_or(AddressError::Form)?, &mut id).map_err(|_| AddressError::Form)?;
    Ok(id)
}

/// Path of a request as it may be logged: without the token that stands before it.
pub fn without_token(path: &str) -> Cow<'_, str> {
    // In whatever form: a path with a slash too many, or with percent signs, may be a mistyped one.
    let (first, behind) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    if first != "t" && !first.contains('%') {
        return path.into();
    }
    match behind.split_once('/') {
        None => "/t/***".into(),
        Some((_, rest)) => format!("/t/***/{rest}").into(),
    }
}

/// Decodes `%41`; `None` for a percent sign without two digits, or bytes that are no UTF-8. APT
/// writes `+` in this way, others a whole name.
fn decoded(path: &str) -> Option<String> {
    if !path.contains('%') {
        return Some(path.to_owned());
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        let mut pair = [0];
        hex::decode_to_slice(digits, &mut pair).ok()?;
        bytes.push(pair[0]);
        rest = behind;
    }
    String::from_utf8(bytes).ok()
}

/// Token that the headers of a request show: `Authorization: Bearer TOKEN`, or as the password of
/// `Authorization: Basic`, whatever the user's name.
pub fn shown_token(headers: &HeaderMap) -> Option<String> {
    let (scheme, rest) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    pair.split_once(':').map(|(_, password)| password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_product_a_channel_or_version_and_a_name() {
        let (address, token) = Address::of_path("/r/os/stable/os_1.2%2Bdeb.erofs").expect("an address");
        assert_eq!(address.reference.to_string(), "os/stable");
        assert_eq!(address.reference.channel().to_string(), "os:stable");
        assert_eq!(address.reference.release().to_string(), "os@stable");
        assert_eq!(address.item, Item::File("os_1.2+deb.erofs".parse().expect("a name")));
        assert_eq!(token, None);
        let (same, token) = Address::of_path("/t/secret.x/r/os/stable/os_1.2+deb.erofs").expect("an address");
        assert_eq!((same, token.as_deref()), (address, Some("secret.x")));
    }

    #[test]
    fn a_chunk_for_casync_has_its_group_before_it() {
        let id = "ab12".to_owned() + &"0".repeat(60);
        let (address, _) =
            Address::of_path(&format!("/r/os/1/default.castr/ab12/{id}.cacnk")).expect("an address");
        let Item::Chunk(chunk) = address.item else { panic!("a chunk") };
        assert_eq!(hex::encode(chunk), id);
        for wrong in [format!("ab13/{id}.cacnk"), format!("ab12/{id}"), "ab12/ab12.cacnk".to_owned()] {
            let path = format!("/r/os/1/default.castr/{wrong}");
            assert_eq!(Address::of_path(&path), Err(AddressError::Form), "{path}");
        }
    }

    #[test]
    fn paths_of_other_forms_are_refused() {
        for path in [
            "",
            "/",
            "/r/os/1",
            "/r/os/1/a/b",
            "/t/x",
            "/t/x/r/os/1",
            "r/os/1/a",
            "/r/os/1/a%2",
            "/r/os/1/%ff",
        ] {
            assert_eq!(Address::of_path(path), Err(AddressError::Form), "{path}");
        }
        for path in
            ["/r/os/1/", "/r/os/1/..", "/r/os/1/.hidden", "/r/os/1/a%2fb%00", "/r//1/a", "/r/os/%2e%2e/a"]
        {
            assert!(Address::of_path(path).is_err(), "{path}");
        }
        assert_eq!(Address::of_path(&format!("/r/os/1/{}", "a".repeat(5000))), Err(AddressError::Form));
    }

    #[test]
    fn a_logged_path_has_no_token() {
        assert_eq!(without_token("/t/secret/r/os/1/x"), "/t/***/r/os/1/x");
        assert_eq!(without_token("/t/secret"), "/t/***");
        assert_eq!(without_token("//t/secret/r/os/1/x"), "/t/***/r/os/1/x");
        assert_eq!(without_token("/%74/secret/r/os/1/x"), "/t/***/r/os/1/x");
        assert_eq!(without_token("/v1/t/x"), "/v1/t/x");
    }

    #[test]
    fn a_token_is_read_from_both_schemes() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().expect("a value"));
            shown_token(&headers)
        };
        assert_eq!(with("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(with("bearer  abc").as_deref(), Some("abc"));
        assert_eq!(with(&format!("Basic {}", STANDARD.encode("me:a:b"))).as_deref(), Some("a:b"));
        for other in ["Basic !", "Digest x", "Bearer", &format!("Basic {}", STANDARD.encode("nopassword"))] {
            assert_eq!(with(other), None, "{other}");
        }
        assert_eq!(shown_token(&HeaderMap::new()), None);
    }
}

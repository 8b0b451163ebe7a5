//! Addresses of files of repositories, in one form: every look-up goes through [`Address`], so that
//! two spellings of one address are one file.

use std::fmt;
use std::net::Ipv6Addr;

/// Longest address that is taken, bytes.
const ADDRESS_BYTES_MAX: usize = 4096;

/// Longest name of a host (RFC 1035).
const HOST_BYTES_MAX: usize = 253;

/// Reason why a text is no address of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The address is longer than 4096 bytes.
    #[error("the address is longer than 4096 bytes")]
    TooLong,
    /// The scheme is neither `http` nor `https`.
    #[error("only http:// and https:// addresses are fetched")]
    Scheme,
    /// The host or the port is malformed, or the address has a user name.
    #[error("the address names no host that can be asked")]
    Host,
    /// The path has a malformed escape, a control character, or leads above its root.
    #[error("the path of the address is malformed")]
    Path,
}

/// Address of a file: scheme, host and port, and a path with one way to write each character.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Whether the file is fetched over TLS.
    pub is_tls: bool,
    /// Host in lower case, without the brackets of an IPv6 address.
    pub host: String,
    /// Port of the host.
    pub port: u16,
    /// Path from its first slash, escaped, with the query if there is one.
    pub path: String,
}

impl Address {
    /// Parses an absolute address.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.len() > ADDRESS_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
        let (scheme, rest) = text.split_once("://").ok_or(AddressError::Scheme)?;
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(AddressError::Scheme),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (host, port) = host_and_port(authority, if is_tls { 443 } else { 80 })?;
        Ok(Self { is_tls, host, port, path: normal_path(path)? })
    }

    /// The address that `location`, of a redirect from this address, leads to.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn join(&self, location: &str) -> Result<Self, AddressError> {
        if location.len() > ADDRESS_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
        if location.contains("://") {
            return Self::parse(location);
        }
        if location.starts_with("//") {
            let scheme = if self.is_tls { "https:" } else { "http:" };
            return Self::parse(&format!("{scheme}{location}"));
        }
        let path = match location.starts_with('/') {
            true => normal_path(location)?,
            false => {
                let dir = self.directory();
                normal_path(&format!("{dir}{location}"))?
            }
        };
        Ok(Self { path, ..self.clone() })
    }

    /// The address of another file, whose escaped path is `path`.
    pub fn with_path(&self, path: impl Into<String>) -> Self {
        Self { path: path.into(), ..self.clone() }
    }

    /// Host and port as in a `Host` header; without the port where it is the scheme's own.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let usual = if self.is_tls { 443 } else { 80 };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }

    /// Path without the query.
    pub fn file_path(&self) -> &str {
        self.path.split('?').next().unwrap_or(&self.path)
    }

    /// Path up to its last slash.
    pub fn directory(&self) -> &str {
        let path = self.file_path();
        &path[..path.rfind('/').map_or(0, |at| at + 1)]
    }

    /// Address of the directory of the file.
    pub fn directory_address(&self) -> Self {
        self.with_path(self.directory())
    }

    /// Last segment of the path.
    pub fn name(&self) -> &str {
        let path = self.file_path();
        &path[path.rfind('/').map_or(0, |at| at + 1)..]
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.is_tls { "https" } else { "http" }, self.authority(), self.path)
    }
}

/// Parses `HOST` or `HOST:PORT`. Returns the host in lower case.
///
/// # Errors
/// [`AddressError::Host`].
pub(super) fn host_and_port(text: &str, usual: u16) -> Result<(String, u16), AddressError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or(AddressError::Host)?;
            host.parse::<Ipv6Addr>().map_err(|_| AddressError::Host)?;
            match after {
                "" => (host, None),
                after => (host, Some(after.strip_prefix(':').ok_or(AddressError::Host)?)),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        None => usual,
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            port.parse().ok().filter(|port| *port != 0).ok_or(AddressError::Host)?
        }
        Some(_) => return Err(AddressError::Host),
    };
    if host.contains(':') {
        // An address has many spellings, and one that a list of hosts is compared with.
        let address: Ipv6Addr = host.parse().map_err(|_| AddressError::Host)?;
        return Ok((address.to_string(), port));
    }
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(is_plain);
    if host.len() > HOST_BYTES_MAX || !host.split('.').all(is_label) {
        return Err(AddressError::Host);
    }
    Ok((host, port))
}

/// Escapes the path of a file as it stands in an index, where nothing is escaped. The result has no
/// slash before it.
///
/// # Errors
/// [`AddressError::Path`] for a path that leads above its root or has a control character.
pub(super) fn escaped(path: &str) -> Result<String, AddressError> {
    let mut segments = Segments::default();
    for segment in path.split('/') {
        segments.push(segment.as_bytes().to_vec())?;
    }
    Ok(segments.finish().trim_start_matches('/').to_owned())
}

/// Brings the path of an address, with its query, into the one form.
fn normal_path(text: &str) -> Result<String, AddressError> {
    let text = text.split('#').next().unwrap_or(text);
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    let mut segments = Segments::default();
    for segment in path.strip_prefix('/').unwrap_or(path).split('/') {
        segments.push(unescaped(segment)?)?;
    }
    let mut out = segments.finish();
    if let Some(query) = query {
        if !query.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(AddressError::Path);
        }
        out.push('?');
        out.push_str(query);
    }
    Ok(out)
}

/// Segments of a path, unescaped, without `.` and `..`.
#[derive(Default)]
struct Segments {
    all: Vec<Vec<u8>>,
    /// Whether the last segment was `.` or `..`: the path then ends in a slash.
    is_directory: bool,
}

impl Segments {
    fn push(&mut self, segment: Vec<u8>) -> Result<(), AddressError> {
        self.is_directory = false;
        match segment.as_slice() {
            b"." => self.is_directory = true,
            b".." => {
                self.all.pop().ok_or(AddressError::Path)?;
                self.is_directory = true;
            }
            _ if segment.iter().any(u8::is_ascii_control) => return Err(AddressError::Path),
            _ => self.all.push(segment),
        }
        Ok(())
    }

    /// Returns the escaped path, which begins with a slash.
    fn finish(self) -> String {
        let mut out = String::new();
        for segment in &self.all {
            out.push('/');
            for byte in segment {
                match byte {
                    // A plus sign is escaped: some servers take it for a space.
                    b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b','
                    | b';' | b'=' | b':' | b'@' => out.push(char::from(*byte)),
                    byte if byte.is_ascii_alphanumeric() => out.push(char::from(*byte)),
                    byte => out.push_str(&format!("%{byte:02X}")),
                }
            }
        }
        if self.is_directory || out.is_empty() {
            out.push('/');
        }
        out
    }
}

fn unescaped(segment: &str) -> Result<Vec<u8>, AddressError> {
    let mut out = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || {
            bytes
                .next()
                .and_then(|byte| char::from(byte).to_digit(16))
                .and_then(|digit| u8::try_from(digit).ok())
        };
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(AddressError::Path) };
        out.push(high << 4 | low);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> String {
        Address::parse(text).map_or_else(|error| format!("{error:?}"), |address| address.to_string())
    }

    #[test]
    fn spellings_of_one_address_are_one_address() {
        for (text, expected) in [
            ("http://Deb.Debian.ORG:80/debian/", "http://deb.debian.org/debian/"),
            ("http://deb.debian.org./a", "http://deb.debian.org/a"),
            ("HTTP://h/a%2bb%7ec%3A1", "http://h/a%2Bb~c:1"),
            ("http://h/a+b~c:1", "http://h/a%2Bb~c:1"),
            ("http://h/%61%2F%62", "http://h/a%2Fb"),
            ("http://h/./a/../b/./", "http://h/b/"),
            ("http://h/a/%2e%2e/b", "http://h/b"),
            ("http://h/a//b", "http://h/a//b"),
            ("http://h", "http://h/"),
            ("http://h?x=1", "http://h/?x=1"),
            ("http://h/a#b", "http://h/a"),
            ("https://h:443/a", "https://h/a"),
            ("https://[::1]:8443/a", "https://[::1]:8443/a"),
            ("http://h/\u{e4}", "http://h/%C3%A4"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
        for (text, error) in [
            ("ftp://h/a", "Scheme"),
            ("/a", "Scheme"),
            ("http:///a", "Host"),
            ("http://u:p@h/a", "Host"),
            ("http://h:0/", "Host"),
            ("http://h:99999/", "Host"),
            ("http://h:+80/", "Host"),
            ("http://[::1/", "Host"),
            ("http://[::1%eth0]/", "Host"),
            ("http://[a:b c]/", "Host"),
            ("http://[h]/", "Host"),
            ("http://h../", "Host"),
            ("http://a..b/", "Host"),
            ("http://./", "Host"),
            ("http://a b/", "Host"),
            ("http://h/../a", "Path"),
            ("http://h/%2e%2e", "Path"),
            ("http://h/%zz", "Path"),
            ("http://h/%4", "Path"),
            ("http://h/%00", "Path"),
            ("http://h/?a b", "Path"),
        ] {
            assert_eq!(shown(text), error, "{text}");
        }
        assert_eq!(shown(&format!("http://h/{}", "a".repeat(5000))), "TooLong");
    }

    #[test]
    fn redirects_are_relative_to_where_they_come_from() {
        let at = Address::parse("http://h:81/a/b?x").expect("an address");
        for (location, expected) in [
            ("c", "http://h:81/a/c"),
            ("/c", "http://h:81/c"),
            ("../c", "http://h:81/c"),
            ("//other/c", "http://other/c"),
            ("https://other/c", "https://other/c"),
        ] {
            assert_eq!(at.join(location).expect("an address").to_string(), expected);
        }
        assert!(at.join("file:///etc/passwd").is_err());
        assert!(at.join("../../c").is_err());
    }

    #[test]
    fn names_in_an_index_are_not_escaped_there() {
        assert_eq!(escaped("pool/g/g++_1%2b.deb").expect("a path"), "pool/g/g%2B%2B_1%252b.deb");
        assert_eq!(escaped("./a.deb").expect("a path"), "a.deb");
        assert!(escaped("../a.deb").is_err() && escaped("a/../../b").is_err() && escaped("a\nb").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_has_one_form(text in "(http://h)?[ -~/.%a]{0,40}") {
            if let Ok(address) = Address::parse(&text) {
                prop_assert_eq!(Address::parse(&address.to_string()), Ok(address.clone()));
                prop_assert!(!address.file_path().split('/').any(|part| part == ".." || part == "."));
            }
        }

        #[test]
        fn escaping_more_than_needed_changes_nothing(path in "[a-zA-Z0-9+~:._-]{1,20}") {
            prop_assume!(path != "." && path != "..");
            let all: String = path.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(Address::parse(&format!("http://h/{all}")), Address::parse(&format!("http://h/{path}")));
            prop_assert_eq!(Address::parse(&format!("http://h/{path}")).map(|a| a.path), Ok(format!("/{}", escaped(&path).expect("a path"))));
        }
    }
}

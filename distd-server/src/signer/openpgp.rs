//! The realm's OpenPGP key and what it makes: the public key for the keyrings of devices, and
//! detached signatures of lines of `SHA256SUMS` (RFC 9580, in the older version-4 forms).
//!
//! The packets have the forms that GnuPG 2.2 and later reads: version 4, algorithm 22 (Ed25519 in
//! its form of before RFC 9580, "EdDSALegacy"), SHA-512. The public key depends on the file of the
//! key alone, so every process prints the same.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{self, SHA1_FOR_LEGACY_USE_ONLY, SHA512};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use distd_peer::trust::files;
use distd_peer::trust::identity::generate_ed25519_pem;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use crate::tuf::KeyError;

/// File of the key that signs, within the directory of all keys: the time of its making, and the
/// key in PKCS#8 PEM.
const IN_FORCE: &str = "realm/openpgp.pem";

/// File of the key that is to sign later, which devices get to know before.
const NEXT: &str = "realm/openpgp-next.pem";

/// User id of the key. Its fingerprint tells the keys of realms apart.
const USER_ID: &[u8] = b"distd, files of releases";

/// First line of a key's file, before the time in unix seconds.
const CREATED: &str = "created: ";

/// Object identifier of the curve Ed25519 in keys of algorithm 22, with its length.
const ED25519_OID: [u8; 10] = [9, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];

const ALGORITHM_EDDSA: u8 = 22;
const HASH_SHA512: u8 = 10;
const VERSION: u8 = 4;

/// Tags of packets.
const TAG_SIGNATURE: u8 = 2;
const TAG_PUBLIC_KEY: u8 = 6;
const TAG_USER_ID: u8 = 13;

/// Kinds of signatures.
const OVER_BYTES: u8 = 0x00;
const OVER_USER_ID: u8 = 0x13;

/// Kinds of subpackets.
const SUB_CREATED: u8 = 2;
const SUB_ISSUER: u8 = 16;
const SUB_KEY_FLAGS: u8 = 27;
const SUB_ISSUER_FINGERPRINT: u8 = 33;

/// Key flags: may certify, may sign.
const MAY_CERTIFY_AND_SIGN: u8 = 0x03;

/// Public half of an OpenPGP key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenPgpPublic {
    /// Fingerprint, 20 bytes.
    #[serde(with = "serde_bytes")]
    pub fingerprint: Vec<u8>,
    /// Packets: the key, its user id, and the key's signature of both.
    #[serde(with = "serde_bytes")]
    pub packets: Vec<u8>,
}

impl OpenPgpPublic {
    /// The packets as text (RFC 9580, section 6).
    pub fn armored(&self) -> String {
        let mut out = String::from("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n");
        let base64 = base64::engine::general_purpose::STANDARD;
        for line in base64.encode(&self.packets).as_bytes().chunks(64) {
            out.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
            out.push('\n');
        }
        let check = crc24(&self.packets).to_be_bytes();
        out.push('=');
        out.push_str(&base64.encode(&check[1..]));
        out.push_str("\n-----END PGP PUBLIC KEY BLOCK-----\n");
        out
    }
}

/// An OpenPGP key in a file.
pub(crate) struct OpenPgpKey {
    pair: Ed25519KeyPair,
    created: u32,
}

impl OpenPgpKey {
    /// Loads the key that signs from the directory of all keys, or makes it at `now` (unix
    /// seconds).
    ///
    /// # Errors
    /// [`KeyError`]; a damaged key is never replaced.
    pub(crate) fn load_or_create(keys: &Path, now: u64) -> Result<Self, KeyError> {
        Self::at(&keys.join(IN_FORCE), now)
    }

    /// Loads the key that is to sign later, or makes it at `now` (unix seconds).
    ///
    /// # Errors
    /// [`KeyError`]; a damaged key is never replaced.
    pub(crate) fn load_or_create_next(keys: &Path, now: u64) -> Result<Self, KeyError> {
        Self::at(&keys.join(NEXT), now)
    }

    fn at(path: &Path, now: u64) -> Result<Self, KeyError> {
        if let Some(parent) = path.parent() {
            files::create_private_dir(parent)?;
        }
        let found = match files::read_secret(path)? {
            Some(found) => found,
            None => {
                let made = format!("{CREATED}{now}\n{}", generate_ed25519_pem()).into_bytes();
                // Another process may be faster.
                match files::create_secret(path, &made)? {
                    true => made,
                    false => files::read_secret(path)?.ok_or_else(|| KeyError::NoFile(path.to_owned()))?,
                }
            }
        };
        Self::parse(&found).ok_or_else(|| KeyError::Malformed(PathBuf::from(path)))
    }

    fn parse(file: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(file).ok()?;
        let created = text.lines().next()?.strip_prefix(CREATED)?.parse().ok()?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(file).ok()?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).ok()?;
        Some(Self { pair, created })
    }

    /// The public half.
    pub(crate) fn public(&self) -> OpenPgpPublic {
        let body = self.public_body();
        let mut certified = framed_key(&body);
        certified.push(0xb4);
        certified.extend_from_slice(&(USER_ID.len() as u32).to_be_bytes());
        certified.extend_from_slice(USER_ID);
        let flags = subpacket(SUB_KEY_FLAGS, &[MAY_CERTIFY_AND_SIGN]);
        let certification = self.signature(OVER_USER_ID, self.created, &flags, &certified);
        let mut packets = packet(TAG_PUBLIC_KEY, &body);
        packets.extend(packet(TAG_USER_ID, USER_ID));
        packets.extend(certification);
        OpenPgpPublic { fingerprint: self.fingerprint(), packets }
    }

    /// Detached signature of `message`, made at `now` (unix seconds), as one packet. The caller
    /// decides what may be signed.
    pub(crate) fn sign(&self, message: &[u8], now: u64) -> Vec<u8> {
        // A key from the future would make a signature from before its key, which verifiers refuse.
        let created = u32::try_from(now).unwrap_or(u32::MAX).max(self.created);
        self.signature(OVER_BYTES, created, &[], message)
    }

    fn public_body(&self) -> Vec<u8> {
        let mut body = vec![VERSION];
        body.extend_from_slice(&self.created.to_be_bytes());
        body.push(ALGORITHM_EDDSA);
        body.extend_from_slice(&ED25519_OID);
        // 0x40: the point follows in its native form.
        body.extend(integer(&[&[0x40], self.pair.public_key().as_ref()].concat()));
        body
    }

    fn fingerprint(&self) -> Vec<u8> {
        digest::digest(&SHA1_FOR_LEGACY_USE_ONLY, &framed_key(&self.public_body())).as_ref().to_vec()
    }

    /// Signature packet of this kind over `signed`. `hashed` are further subpackets that the
    /// signature covers.
    fn signature(&self, kind: u8, created: u32, hashed: &[u8], signed: &[u8]) -> Vec<u8> {
        let fingerprint = self.fingerprint();
        let mut covered = subpacket(SUB_CREATED, &created.to_be_bytes());
        covered.extend(subpacket(SUB_ISSUER_FINGERPRINT, &[&[VERSION], &fingerprint[..]].concat()));
        covered.extend_from_slice(hashed);
        let mut body = vec![VERSION, kind, ALGORITHM_EDDSA, HASH_SHA512];
        body.extend_from_slice(&(covered.len() as u16).to_be_bytes());
        body.extend(covered);

        let mut hash = digest::Context::new(&SHA512);
        hash.update(signed);
        hash.update(&body);
        hash.update(&[VERSION, 0xff]);
        hash.update(&(body.len() as u32).to_be_bytes());
        let hash = hash.finish();
        let signature = self.pair.sign(hash.as_ref());

        // GnuPG of before version 2.2 finds the key by its id, the end of the fingerprint.
        let issuer = subpacket(SUB_ISSUER, &fingerprint[12..]);
        body.extend_from_slice(&(issuer.len() as u16).to_be_bytes());
        body.extend(issuer);
        body.extend_from_slice(&hash.as_ref()[..2]);
        let (r, s) = signature.as_ref().split_at(32);
        body.extend(integer(r));
        body.extend(integer(s));
        packet(TAG_SIGNATURE, &body)
    }
}

/// A key as signatures and fingerprints cover it.
fn framed_key(body: &[u8]) -> Vec<u8> {
    let mut framed = vec![0x99];
    framed.extend_from_slice(&(body.len() as u16).to_be_bytes());
    framed.extend_from_slice(body);
    framed
}

/// Packet with a header of the newer form. Bodies here are shorter than 192 bytes, so that their
/// length is one byte.
fn packet(tag: u8, body: &[u8]) -> Vec<u8> {
    assert!(body.len() < 192, "every packet of this module is short");
    let mut out = vec![0xc0 | tag, body.len() as u8];
    out.extend_from_slice(body);
    out
}

fn subpacket(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![body.len() as u8 + 1, kind];
    out.extend_from_slice(body);
    out
}

/// Multiprecision integer: its length in bits, and its bytes without leading zeros.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let bytes = &bytes[zeros..];
    let bits = bytes.first().map_or(0, |first| bytes.len() * 8 - first.leading_zeros() as usize);
    let mut out = (bits as u16).to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

/// Checksum of armored text (RFC 9580, section 6.1.1).
fn crc24(bytes: &[u8]) -> u32 {
    let mut crc = 0x00b7_04ce_u32;
    for byte in bytes {
        crc ^= u32::from(*byte) << 16;
        for _ in 0..8 {
            crc <<= 1;
            if crc & 0x0100_0000 != 0 {
                crc ^= 0x0186_4cfb;
            }
        }
    }
    crc & 0x00ff_ffff
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use distd_core::file_name::sum_line;

    use super::*;

    const NOW: u64 = 1_700_000_000;

    /// Key with a fixed seed.
    fn fixed() -> OpenPgpKey {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed");
        OpenPgpKey { pair, created: 1_700_000_000 }
    }

    #[test]
    fn packets_are_these_bytes() {
        assert_eq!(integer(&[0, 0, 1, 2]), [0, 9, 1, 2]);
        assert_eq!(integer(&[0x40]), [0, 7, 0x40]);
        assert_eq!(integer(&[0]), [0, 0]);
        // The check value that catalogues of such sums give, of "123456789".
        assert_eq!(crc24(b"123456789"), 0x0021_cf02);
        let key = fixed();
        let golden = include_str!("testdata/openpgp.txt");
        let found = format!(
            "{}\n{}\n{}",
            hex::encode(key.fingerprint()),
            hex::encode(key.sign(sum_line(&[1; 32], "os_1.erofs").as_bytes(), NOW)),
            key.public().armored()
        );
        assert_eq!(found, golden);
    }

    #[test]
    fn a_key_is_made_once_and_a_damaged_one_is_not_replaced() {
        let dir = tempfile::tempdir().expect("tempdir");
        let made = OpenPgpKey::load_or_create(dir.path(), NOW).expect("made").public();
        let again = OpenPgpKey::load_or_create(dir.path(), NOW + 5).expect("loaded").public();
        assert_eq!(made, again);
        let next = OpenPgpKey::load_or_create_next(dir.path(), NOW).expect("made").public();
        assert_ne!(made.fingerprint, next.fingerprint);
        let path = dir.path().join(IN_FORCE);
        let text = std::fs::read_to_string(&path).expect("a file");
        for damaged in [text.replace("created: ", ""), text.replace("BEGIN", "END"), String::new()] {
            std::fs::write(&path, &damaged).expect("written");
            let found = OpenPgpKey::load_or_create(dir.path(), NOW);
            assert!(matches!(found, Err(KeyError::Malformed(_))), "{damaged}");
            assert_eq!(std::fs::read_to_string(&path).expect("still there"), damaged);
        }
    }

    /// Runs `gpgv` over a message with a signature; `None` where there is no gpgv.
    fn gpgv(dir: &Path, keyring: &[u8], message: &[u8], signature: &[u8]) -> Option<bool> {
        std::fs::write(dir.join("ring.gpg"), keyring).expect("written");
        std::fs::write(dir.join("sig"), signature).expect("written");
        let mut command = Command::new("gpgv");
        command.arg("--homedir").arg(dir).arg("--keyring").arg(dir.join("ring.gpg"));
        command.arg(dir.join("sig")).arg("-");
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("skipped: there is no gpgv");
                return None;
            }
            Err(error) => panic!("gpgv: {error}"),
        };
        child.stdin.take().expect("piped").write_all(message).expect("written");
        let output = child.wait_with_output().expect("runs");
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        Some(output.status.success())
    }

    #[test]
    fn gnupg_takes_a_right_signature_and_no_other() {
        let dir = tempfile::tempdir().expect("tempdir");
        let key = OpenPgpKey::load_or_create(dir.path(), NOW).expect("a key");
        let public = key.public();
        let line = sum_line(&[0xcd; 32], "os_1.erofs");
        let signature = key.sign(line.as_bytes(), NOW);
        let Some(good) = gpgv(dir.path(), &public.packets, line.as_bytes(), &signature) else { return };
        assert!(good);
        for changed in [line.replace("os_1", "os_2"), line.replacen('c', "d", 1), line.clone() + &line] {
            assert_eq!(gpgv(dir.path(), &public.packets, changed.as_bytes(), &signature), Some(false));
        }
        // A second key in the keyring does not matter; the second key alone does not verify.
        let next = OpenPgpKey::load_or_create_next(dir.path(), NOW).expect("a key").public();
        let both = [&next.packets[..], &public.packets].concat();
        assert_eq!(gpgv(dir.path(), &both, line.as_bytes(), &signature), Some(true));
        assert_eq!(gpgv(dir.path(), &next.packets, line.as_bytes(), &signature), Some(false));
        // Each half of one signature in 256 begins with a zero byte, which an integer leaves out.
        let key = fixed();
        let lines = (0..1000).map(|n| sum_line(&[0xcd; 32], &format!("os_{n}.erofs")));
        let signed: Vec<_> = lines.map(|line| (key.sign(line.as_bytes(), NOW), line)).collect();
        let whole = signed.iter().map(|(signature, _)| signature.len()).max().expect("some");
        let (signature, line) = signed.iter().find(|(signature, _)| signature.len() < whole).expect("one");
        assert_eq!(gpgv(dir.path(), &key.public().packets, line.as_bytes(), signature), Some(true));
    }

    #[test]
    fn gnupg_imports_the_armored_key() {
        let dir = tempfile::tempdir().expect("tempdir");
        let public = OpenPgpKey::load_or_create(dir.path(), NOW).expect("a key").public();
        let file = dir.path().join("key.asc");
        std::fs::write(&file, public.armored()).expect("written");
        let mut command = Command::new("gpg");
        command.args(["--batch", "--show-keys", "--with-colons", "--homedir"]).arg(dir.path()).arg(&file);
        let output = match command.output() {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("skipped: there is no gpg");
                return;
            }
            Err(error) => panic!("gpg: {error}"),
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let fingerprint = hex::encode_upper(&public.fingerprint);
        assert!(text.contains(&format!("fpr:::::::::{fingerprint}:")), "{text}");
        // The key may certify and sign, and its user id is certified by itself.
        assert!(text.contains("distd, files of releases") && text.contains(":sc"), "{text}");
    }
}

//! Extended attributes of one entry.

use std::io;
use std::path::Path;

use distd_core::tree::Xattr;
use rustix::io::Errno;

/// Size of a buffer for attributes, in bytes. Linux limits both a list of names and a value to this
/// size (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
pub const BUFFER_BYTES: usize = 64 << 10;

/// Reads the attributes of the entry at `path`; a link is not followed. Returns no attributes if
/// the file system does not support them. `buffer` has [`BUFFER_BYTES`].
///
/// # Errors
/// As the system reports.
pub fn read(path: &Path, buffer: &mut [u8]) -> io::Result<Vec<Xattr>> {
    let len = match rustix::fs::llistxattr(path, &mut buffer[..]) {
        Ok(len) => len,
        // The file system does not support attributes.
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    let names = buffer[..len].to_vec();
    let mut xattrs = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        match rustix::fs::lgetxattr(path, name, &mut buffer[..]) {
            Ok(len) => xattrs.push(Xattr { name: name.into(), value: buffer[..len].into() }),
            // The attribute was removed since it was listed, or it is listed although it has no
            // value here.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(xattrs)
}

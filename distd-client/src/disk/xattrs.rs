//! Extended attributes of one entry.

use std::io;
use std::path::Path;

use distd_core::tree::Xattr;
use rustix::io::Errno;

/// Linux lists at most this many bytes of attribute names, and a value is no longer (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
pub(crate) const BUFFER_BYTES: usize = 64 << 10;

/// The attributes of what is at `path`, which is not followed if it is a link; none where the file system keeps none. `buffer` has
/// [`BUFFER_BYTES`].
///
/// # Errors
/// As the system reports.
pub(crate) fn read(path: &Path, buffer: &mut [u8]) -> io::Result<Vec<Xattr>> {
    let len = match rustix::fs::llistxattr(path, &mut buffer[..]) {
        Ok(len) => len,
        // The file system keeps none.
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    let names = buffer[..len].to_vec();
    let mut xattrs = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        match rustix::fs::lgetxattr(path, name, &mut buffer[..]) {
            Ok(len) => xattrs.push(Xattr { name: name.into(), value: buffer[..len].into() }),
            // Gone since it was listed, or listed though it has no value here.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(xattrs)
}

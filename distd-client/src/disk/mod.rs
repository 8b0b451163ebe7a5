//! The device's disks: the path of an artifact, mounts, devices in use, safe removal, and files
//! that nobody else can have created.
//!
//! Nothing here knows about releases. [`path`] brings every path of the command line into one form;
//! [`mounts`] and [`device`] find what must not be touched; [`remove`], [`side`], [`mod@lock`] and
//! [`beneath`] change directories without following a link or crossing a mount. `spread` puts the
//! partitions of a disk image in places of their own.

pub mod beneath;
pub mod device;
pub mod lock;
pub mod mounts;
pub mod path;
pub mod remove;
pub mod room;
pub mod side;
pub(crate) mod spread;
pub mod xattrs;

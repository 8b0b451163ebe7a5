//! The device's disks: the path of an artifact, mounts, devices in use, safe removal, and files
//! that nobody else can have created.
//!
//! Nothing here knows about releases. [`path`] brings every path of the command line into one form;
//! [`mounts`] and [`device`] find what must not be touched; [`remove`], [`side`], [`mod@lock`] and
//! [`beneath`] change directories without following a link or crossing a mount.

pub(crate) mod beneath;
pub(crate) mod device;
pub(crate) mod lock;
pub(crate) mod mounts;
pub(crate) mod path;
pub(crate) mod remove;
pub(crate) mod room;
pub(crate) mod side;
pub(crate) mod xattrs;

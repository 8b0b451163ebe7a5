//! The device's disks: which path an artifact has, what is mounted, which device is in use, how to remove and how to make files that
//! nobody else can have put there.
//!
//! Nothing here knows a release. [`path`] brings every path of the command line into one form; [`mounts`] and [`device`] say what
//! must be left alone; [`remove`], [`side`], [`mod@lock`] and [`beneath`] change directories without following a link or crossing a mount.

pub(crate) mod beneath;
pub(crate) mod device;
pub(crate) mod lock;
pub(crate) mod mounts;
pub(crate) mod path;
pub(crate) mod remove;
pub(crate) mod room;
pub(crate) mod side;
pub(crate) mod xattrs;

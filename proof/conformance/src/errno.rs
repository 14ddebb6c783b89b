//! Xen's refusals as they stand in `rax`.

pub(crate) const EPERM: i64 = -1;
pub(crate) const ESRCH: i64 = -3;
pub(crate) const EACCES: i64 = -13;
pub(crate) const EFAULT: i64 = -14;
pub(crate) const EBUSY: i64 = -16;
pub(crate) const EINVAL: i64 = -22;
pub(crate) const ENOSYS: i64 = -38;
pub(crate) const EOPNOTSUPP: i64 = -95;

/// No errno: the access faulted.
pub(crate) const FAULT: i64 = -1000;

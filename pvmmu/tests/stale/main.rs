//! No vCPU goes on with what the tables no longer say: every operation that owes a flush, with a
//! second vCPU that has every page in its TLB and uses it. Each flush that is left out makes a test
//! of these fail with a stale translation (`tests/mutants/pvmmu.toml`).

#[path = "../common/mod.rs"]
mod common;
mod ends;
mod live;
mod moments;
mod sharing;
mod single;
mod stage;
